package mesos_test

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/oci"
	_ "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	_ "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	_ "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/allocator"
	_ "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	_ "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/maintenance"
	_ "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	_ "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"
	_ "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/resource_provider"
	_ "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
	_ "github.com/mosaic-cluster/mosaic/sdk/proto/resource_provider/storage"
)

const listing = "testdata/mesos-v1.tsv"

// A row is one line of the listing without the key, which is file, message or enum, and name.
type row struct{ number, label, typ, def, flags string }

// TestMessagesAreThoseOfTheListing compares every row with what is compiled in, both ways.
func TestMessagesAreThoseOfTheListing(t *testing.T) {
	want, files := readListing(t)
	got := make(map[string]row)
	for _, name := range files {
		f, err := protoregistry.GlobalFiles.FindFileByPath(name)
		if err != nil {
			t.Errorf("file %s is listed and not compiled in: %v", name, err)
			continue
		}
		if s := protodesc.ToFileDescriptorProto(f).GetSyntax(); s != "" && s != "proto2" {
			t.Errorf("file %s has syntax %s, want proto2", name, s)
		}
		addMessages(got, f.Path(), f.Messages())
		addEnums(got, f.Path(), f.Enums())
	}
	if len(want) < 1600 {
		t.Fatalf("%s has %d rows, want Mesos's 1,700", listing, len(want))
	}
	for key, w := range want {
		g, ok := got[key]
		switch {
		case !ok:
			t.Errorf("%s: listed and not compiled in", key)
		case g != w:
			t.Errorf("%s: got %+v, want %+v", key, g, w)
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			t.Errorf("%s: compiled in and not listed", key)
		}
	}
}

func readListing(t *testing.T) (rows map[string]row, files []string) {
	t.Helper()
	f, err := os.Open(listing)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows = make(map[string]row)
	seen := make(map[string]bool)
	s := bufio.NewScanner(f)
	s.Scan() // the heading
	for s.Scan() {
		c := strings.Split(s.Text(), "\t")
		if len(c) != 8 {
			t.Fatalf("%s: %d columns in %q, want 8", listing, len(c), s.Text())
		}
		key := strings.Join(c[:3], " ")
		if _, twice := rows[key]; twice {
			t.Fatalf("%s: %s is listed twice", listing, key)
		}
		rows[key] = row{c[3], c[4], c[5], c[6], c[7]}
		if !seen[c[0]] {
			seen[c[0]] = true
			files = append(files, c[0])
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return rows, files
}

func addMessages(rows map[string]row, file string, messages protoreflect.MessageDescriptors) {
	for i := range messages.Len() {
		m := messages.Get(i)
		if m.IsMapEntry() {
			continue // shown as the map's type
		}
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			rows[fmt.Sprintf("%s %s %s", file, m.FullName(), f.Name())] = row{
				number: strconv.Itoa(int(f.Number())),
				label:  f.Cardinality().String(),
				typ:    typeName(f),
				def:    defaultText(f),
				flags:  fieldFlags(f),
			}
		}
		addMessages(rows, file, m.Messages())
		addEnums(rows, file, m.Enums())
	}
}

func addEnums(rows map[string]row, file string, enums protoreflect.EnumDescriptors) {
	for i := range enums.Len() {
		e := enums.Get(i)
		for j := range e.Values().Len() {
			v := e.Values().Get(j)
			flags := ""
			if o, ok := v.Options().(*descriptorpb.EnumValueOptions); ok && o.GetDeprecated() {
				flags = "deprecated"
			}
			rows[fmt.Sprintf("%s %s %s", file, e.FullName(), v.Name())] = row{
				number: strconv.Itoa(int(v.Number())),
				label:  "enum",
				flags:  flags,
			}
		}
	}
}

func typeName(f protoreflect.FieldDescriptor) string {
	switch {
	case f.IsMap():
		return fmt.Sprintf("map<%s,%s>", typeName(f.MapKey()), typeName(f.MapValue()))
	case f.Kind() == protoreflect.MessageKind:
		return string(f.Message().FullName())
	case f.Kind() == protoreflect.EnumKind:
		return string(f.Enum().FullName())
	}
	return f.Kind().String()
}

func defaultText(f protoreflect.FieldDescriptor) string {
	switch {
	case !f.HasDefault():
		return ""
	case f.Kind() == protoreflect.EnumKind:
		return string(f.DefaultEnumValue().Name())
	}
	return f.Default().String()
}

func fieldFlags(f protoreflect.FieldDescriptor) string {
	var flags []string
	if o, ok := f.Options().(*descriptorpb.FieldOptions); ok && o.GetDeprecated() {
		flags = append(flags, "deprecated")
	}
	if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
		flags = append(flags, "oneof="+string(o.Name()))
	}
	return strings.Join(flags, ",")
}
