package file_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mosaic-cluster/mosaic/modules/secretresolvers/file"
	"github.com/mosaic-cluster/mosaic/sdk/kit"
	"github.com/mosaic-cluster/mosaic/sdk/module"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	secretresolverv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/secretresolver/v1"
)

// TestMain lets the test's own executable be the module when the kit starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv("MOSAIC_MODULE") != "" {
		module.Serve(file.New())
		return
	}
	os.Exit(m.Run())
}

func TestConformance(t *testing.T) {
	kit.Conform(t, kit.Program{Path: os.Args[0]}.Dial, kit.Full)
}

// folder makes the files of a folder of secrets, which lies beside one that is none of the module's business.
func folder(t *testing.T) string {
	t.Helper()
	parent := t.TempDir()
	dir := filepath.Join(parent, "secrets")
	for name, f := range map[string]struct {
		text string
		mode os.FileMode
	}{
		"secrets/db":              {"pa55\n", 0o600},
		"secrets/bin":             {"\x00\x01\n\n", 0o640},
		"secrets/json":            {`{"user":"u","n":7,"o":{"a":1}}`, 0o600},
		"secrets/broken":          {`{"user":"topsecret`, 0o600},
		"secrets/app/token":       {"t0k", 0o600},
		"secrets/open":            {"x", 0o644},
		"secrets/alice/own":       {"hers", 0o600},
		"secrets/huge":            {strings.Repeat("x", 1<<20+1), 0o600},
		"outside":                 {"not yours", 0o600},
		"secrets/bob/deeper/down": {"d", 0o600},
	} {
		path := filepath.Join(parent, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(f.text), f.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, f.mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"link": "../outside", "within": "db", "absolute": filepath.Join(parent, "outside")} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestSecretsComeFromTheFolderAndNowhereElse(t *testing.T) {
	dir := folder(t)
	for _, test := range []struct {
		name, config         string
		ref, key             string
		want                 string
		code                 codes.Code
		mentions, mustNotSay string
	}{
		{name: "a file as it is", ref: "db", want: "pa55\n"},
		{name: "without its line end", config: `"trim_newline":true`, ref: "db", want: "pa55"},
		{name: "bytes", ref: "bin", want: "\x00\x01\n\n"},
		{name: "one line end only", config: `"trim_newline":true`, ref: "bin", want: "\x00\x01\n"},
		{name: "a member", ref: "json", key: "user", want: "u"},
		{name: "a number", ref: "json", key: "n", want: "7"},
		{name: "an object", ref: "json", key: "o", want: `{"a":1}`},
		{name: "no such member", ref: "json", key: "none", code: codes.NotFound, mentions: "none"},
		{name: "no object", ref: "broken", key: "user", code: codes.FailedPrecondition, mustNotSay: "topsecret"},
		{name: "a folder and a key", ref: "app", key: "token", want: "t0k"},
		{name: "a path", ref: "app/token", want: "t0k"},
		{name: "a folder alone", ref: "app", code: codes.InvalidArgument, mentions: "folder"},
		{name: "a link inside", ref: "within", want: "pa55\n"},
		{name: "none", ref: "none", code: codes.NotFound, mentions: "none"},
		{name: "no name", code: codes.InvalidArgument},
		{name: "climbing", ref: "../outside", code: codes.InvalidArgument},
		{name: "climbing by key", ref: "app", key: "../../outside", code: codes.InvalidArgument},
		{name: "absolute", ref: filepath.Join(dir, "db"), code: codes.InvalidArgument},
		{name: "a link out", ref: "link", code: codes.InvalidArgument},
		{name: "an absolute link", ref: "absolute", code: codes.InvalidArgument},
		{name: "a pipe", ref: "pipe", code: codes.InvalidArgument, mentions: "pipe"},
		{name: "for everybody", ref: "open", code: codes.FailedPrecondition, mentions: "0644"},
		{name: "for everybody, allowed", config: `"allow_world_readable":true`, ref: "open", want: "x"},
		{name: "too large", ref: "huge", code: codes.FailedPrecondition},
		{name: "a zero byte", ref: "d\x00b", code: codes.InvalidArgument},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := `{"folder":` + quote(dir) + `}`
			if test.config != "" {
				config = `{"folder":` + quote(dir) + `,` + test.config + `}`
			}
			r := secretresolverv1.NewSecretResolverClient(moduletest.Start(t, file.New(), config).Conn)
			a, err := r.Resolve(context.Background(), &secretresolverv1.ResolveRequest{Secret: &mesosv1.Secret{
				Type: mesosv1.Secret_REFERENCE.Enum(), Reference: &mesosv1.Secret_Reference{Name: &test.ref, Key: &test.key},
			}})
			if status.Code(err) != test.code || string(a.GetData()) != test.want {
				t.Fatalf("Resolve(%q, %q) = %q, %v; want %q, %s", test.ref, test.key, a.GetData(), err, test.want, test.code)
			}
			if err != nil && (!strings.Contains(err.Error(), test.mentions) || test.mustNotSay != "" && strings.Contains(err.Error(), test.mustNotSay)) {
				t.Errorf("Resolve(%q): %v, want a word of %q and none of the secret", test.ref, err, test.mentions)
			}
		})
	}
}

func TestAValueIsItsOwnAnswerAndAnythingElseIsRefused(t *testing.T) {
	r := secretresolverv1.NewSecretResolverClient(moduletest.Start(t, file.New(), `{}`).Conn)
	a, err := r.Resolve(context.Background(), &secretresolverv1.ResolveRequest{Secret: &mesosv1.Secret{
		Type: mesosv1.Secret_VALUE.Enum(), Value: &mesosv1.Secret_Value{Data: []byte("v")},
	}})
	if err != nil || string(a.GetData()) != "v" {
		t.Errorf("Resolve of a value = %v, %v; want it back", a, err)
	}
	for _, s := range []*mesosv1.Secret{nil, {}} {
		if _, err := r.Resolve(context.Background(), &secretresolverv1.ResolveRequest{Secret: s}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("Resolve of %v: %v, want InvalidArgument", s, err)
		}
	}
}

func TestAFolderThatIsMissingIsTold(t *testing.T) {
	c := moduletest.Dial(t, file.New())
	if errs := c.Configure(t, `{"folder":"relative"}`); len(errs) != 1 || errs[0].GetPath() != "folder" {
		t.Errorf("Configure with a relative folder = %v, want an error at folder", errs)
	}
	if errs := c.Configure(t, `{"folder":"/no/such/folder"}`); len(errs) > 0 {
		t.Fatalf("Configure with a folder that may come later = %v, want it taken", errs)
	}
	name := "db"
	_, err := secretresolverv1.NewSecretResolverClient(c.Conn).Resolve(context.Background(), &secretresolverv1.ResolveRequest{
		Secret: &mesosv1.Secret{Type: mesosv1.Secret_REFERENCE.Enum(), Reference: &mesosv1.Secret_Reference{Name: &name}},
	})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "/no/such/folder") {
		t.Errorf("Resolve without the folder: %v, want FailedPrecondition that names it", err)
	}
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}
