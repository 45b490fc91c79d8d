package codec

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/mosaic-cluster/mosaic/sdk/mesosjson"
)

// errMalformed is what a client is told about bytes that are no message at all.
var errMalformed = errors.New("malformed protobuf")

// unmarshalProtobuf decodes data in two passes. The first walks the bytes by the descriptor and
// allocates nothing: it holds the depth (the generated decoder recurses without a limit, and a stack
// that overflows ends the process) and the number of values (an empty message is two bytes on the wire
// and some hundred in memory). The second is the generated decoder.
func unmarshalProtobuf(data []byte, m Message) error {
	var s survey
	if err := s.message(m.ProtoReflect().Descriptor(), data, 1); err != nil {
		return err
	}
	proto.Reset(m)
	if err := m.UnmarshalVT(data); err != nil {
		return err
	}
	if !s.unknownEnums {
		return nil
	}
	return dropUnknownEnums(m.ProtoReflect())
}

// survey is the first pass: what is in a message's bytes.
type survey struct {
	values       int
	unknownEnums bool // some enum field holds a number that has no name
}

func (s *survey) message(d protoreflect.MessageDescriptor, data []byte, depth int) error {
	if depth > mesosjson.DefaultMaxDepth {
		return fmt.Errorf("messages nested deeper than %d levels", mesosjson.DefaultMaxDepth)
	}
	fields := d.Fields()
	for len(data) > 0 {
		number, wire, n := protowire.ConsumeTag(data)
		if n < 0 || number > protowire.MaxValidNumber {
			return errMalformed
		}
		data = data[n:]
		if s.values++; s.values > mesosjson.DefaultMaxValues {
			return fmt.Errorf("more than %d values", mesosjson.DefaultMaxValues)
		}
		f := fields.ByNumber(number)
		if wire != protowire.BytesType {
			if f != nil && wire == protowire.VarintType && f.Kind() == protoreflect.EnumKind {
				v, n := protowire.ConsumeVarint(data)
				if n < 0 {
					return errMalformed
				}
				s.enum(f, v)
			}
			// protowire bounds the nesting of groups by itself.
			n := protowire.ConsumeFieldValue(number, wire, data)
			if n < 0 {
				return errMalformed
			}
			data = data[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(data)
		if n < 0 {
			return errMalformed
		}
		data = data[n:]
		if f == nil {
			continue
		}
		switch f.Kind() {
		case protoreflect.MessageKind:
			if err := s.message(f.Message(), value, depth+1); err != nil {
				return err
			}
		case protoreflect.StringKind:
			if !utf8.Valid(value) {
				return fmt.Errorf("field %s is not valid UTF-8", f.FullName())
			}
		case protoreflect.BytesKind:
		default:
			if err := s.packed(f, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// packed counts the elements of a packed list.
func (s *survey) packed(f protoreflect.FieldDescriptor, data []byte) error {
	for len(data) > 0 {
		if s.values++; s.values > mesosjson.DefaultMaxValues {
			return fmt.Errorf("more than %d values", mesosjson.DefaultMaxValues)
		}
		var n int
		switch f.Kind() {
		case protoreflect.DoubleKind, protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind:
			_, n = protowire.ConsumeFixed64(data)
		case protoreflect.FloatKind, protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind:
			_, n = protowire.ConsumeFixed32(data)
		default:
			var v uint64
			v, n = protowire.ConsumeVarint(data)
			if n > 0 && f.Kind() == protoreflect.EnumKind {
				s.enum(f, v)
			}
		}
		if n < 0 {
			return errMalformed
		}
		data = data[n:]
	}
	return nil
}

func (s *survey) enum(f protoreflect.FieldDescriptor, v uint64) {
	if f.Enum().Values().ByNumber(protoreflect.EnumNumber(int32(v))) == nil {
		s.unknownEnums = true
	}
}

// dropUnknownEnums unsets enum fields whose numbers have no name, which is what proto2 libraries with
// closed enums do as they decode. Go's does not. A required field that is lost this way is an error.
func dropUnknownEnums(m protoreflect.Message) error {
	var err error
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			if f.MapValue().Kind() == protoreflect.MessageKind {
				v.Map().Range(func(_ protoreflect.MapKey, e protoreflect.Value) bool {
					err = dropUnknownEnums(e.Message())
					return err == nil
				})
			}
		case f.IsList() && f.Kind() == protoreflect.EnumKind:
			list, kept := v.List(), 0
			for i := range list.Len() {
				if e := list.Get(i); f.Enum().Values().ByNumber(e.Enum()) != nil {
					list.Set(kept, e)
					kept++
				}
			}
			list.Truncate(kept)
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			for i := range v.List().Len() {
				if err = dropUnknownEnums(v.List().Get(i).Message()); err != nil {
					break
				}
			}
		case f.IsList():
		case f.Kind() == protoreflect.EnumKind:
			if f.Enum().Values().ByNumber(v.Enum()) != nil {
				break
			}
			if f.Cardinality() == protoreflect.Required {
				err = fmt.Errorf("required field %s has the unknown value %d", f.FullName(), v.Enum())
				break
			}
			m.Clear(f)
		case f.Kind() == protoreflect.MessageKind:
			err = dropUnknownEnums(v.Message())
		}
		return err == nil
	})
	return err
}
