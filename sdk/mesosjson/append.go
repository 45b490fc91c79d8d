package mesosjson

import (
	"encoding/base64"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"
)

// An Appender appends itself to b as one line of JSON. Generated messages are Appenders.
type Appender interface {
	AppendJSON(b []byte) []byte
}

// Members and elements are appended with a comma behind each; CloseObject and closeList turn the last
// one into the bracket. That keeps the generated code free of "is this the first".

// CloseObject ends the object that b is in.
func CloseObject(b []byte) []byte {
	if b[len(b)-1] == ',' {
		b[len(b)-1] = '}'
		return b
	}
	return append(b, '}')
}

func closeList(b []byte) []byte {
	if b[len(b)-1] == ',' {
		b[len(b)-1] = ']'
		return b
	}
	return append(b, ']')
}

// AppendList appends key, the elements of list, and a comma; nothing when list is empty.
func AppendList[T any](b []byte, key string, list []T, element func([]byte, T) []byte) []byte {
	if len(list) == 0 {
		return b
	}
	b = append(append(b, key...), '[')
	for _, v := range list {
		b = append(element(b, v), ',')
	}
	return append(closeList(b), ',')
}

// AppendMessages is AppendList for messages.
func AppendMessages[T Appender](b []byte, key string, list []T) []byte {
	if len(list) == 0 {
		return b
	}
	b = append(append(b, key...), '[')
	for _, v := range list {
		b = append(v.AppendJSON(b), ',')
	}
	return append(closeList(b), ',')
}

// AppendMap appends key, m as an object with its keys in order, and a comma; nothing when m is empty.
func AppendMap[T any](b []byte, key string, m map[string]T, element func([]byte, T) []byte) []byte {
	if len(m) == 0 {
		return b
	}
	b = append(append(b, key...), '{')
	for _, k := range sortedKeys(m) {
		b = append(AppendString(b, k), ':')
		b = append(element(b, m[k]), ',')
	}
	return append(CloseObject(b), ',')
}

// AppendMessageMap is AppendMap for messages.
func AppendMessageMap[T Appender](b []byte, key string, m map[string]T) []byte {
	return AppendMap(b, key, m, func(b []byte, v T) []byte { return v.AppendJSON(b) })
}

// sortedKeys makes the encoding of a message a function of the message.
func sortedKeys[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// AppendEnumField appends key, the word for v, and a comma. A number that names does not know is left
// out, as if the field were unset: that is what Mesos's own protobuf library makes of it.
func AppendEnumField[E ~int32](b []byte, key string, v E, names map[int32]string) []byte {
	name, ok := names[int32(v)]
	if !ok {
		return b
	}
	b = append(append(b, key...), '"')
	b = append(b, name...)
	return append(b, '"', ',')
}

// AppendEnums appends key, the words for list, and a comma; nothing when there are none.
func AppendEnums[E ~int32](b []byte, key string, list []E, names map[int32]string) []byte {
	start := len(b)
	b = append(append(b, key...), '[')
	none := len(b)
	for _, v := range list {
		if name, ok := names[int32(v)]; ok {
			b = append(b, '"')
			b = append(b, name...)
			b = append(b, '"', ',')
		}
	}
	if len(b) == none {
		return b[:start]
	}
	return append(closeList(b), ',')
}

// AppendBool appends true or false.
func AppendBool(b []byte, v bool) []byte { return strconv.AppendBool(b, v) }

// AppendInt appends v as a number, whatever its width.
func AppendInt[T ~int32 | ~int64](b []byte, v T) []byte { return strconv.AppendInt(b, int64(v), 10) }

// AppendUint appends v as a number, whatever its width.
func AppendUint[T ~uint32 | ~uint64](b []byte, v T) []byte {
	return strconv.AppendUint(b, uint64(v), 10)
}

// AppendBytes appends v in base64 with padding, in quotes.
func AppendBytes(b []byte, v []byte) []byte {
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, v)
	return append(b, '"')
}

// AppendDuration appends d as the plain message {"seconds":S,"nanos":N}, not as protojson's "600s".
func AppendDuration(b []byte, d *durationpb.Duration) []byte {
	b = AppendInt(append(b, `{"seconds":`...), d.GetSeconds())
	b = AppendInt(append(b, `,"nanos":`...), d.GetNanos())
	return append(b, '}')
}

// AppendDouble appends the shortest number that reads back as v, with a decimal point always (15.0),
// and with an exponent below 1e-6 and from 1e21 on. Infinities and NaN are the bare words Infinity,
// -Infinity and NaN.
func AppendDouble(b []byte, v float64) []byte { return appendFloat(b, v, 64) }

// AppendFloat is AppendDouble for single precision.
func AppendFloat(b []byte, v float32) []byte { return appendFloat(b, float64(v), 32) }

func appendFloat(b []byte, v float64, bits int) []byte {
	switch {
	case math.IsInf(v, 1):
		return append(b, "Infinity"...)
	case math.IsInf(v, -1):
		return append(b, "-Infinity"...)
	case math.IsNaN(v):
		return append(b, "NaN"...)
	}
	// Whole numbers are most of what is written (memory in MB, ports, seconds), and an integer costs a
	// fraction of a float to format.
	if v == math.Trunc(v) && math.Abs(v) < 1<<53 && (v != 0 || !math.Signbit(v)) {
		return append(strconv.AppendInt(b, int64(v), 10), '.', '0')
	}
	if a := math.Abs(v); a != 0 && (a < 1e-6 || a >= 1e21) {
		start := len(b)
		b = strconv.AppendFloat(b, v, 'e', -1, bits)
		exponent := start + slices.Index(b[start:], 'e')
		if !slices.Contains(b[start:exponent], '.') {
			b = slices.Insert(b, exponent, '.', '0')
		}
		return b
	}
	start := len(b)
	b = strconv.AppendFloat(b, v, 'f', -1, bits)
	if !slices.Contains(b[start:], '.') {
		b = append(b, '.', '0')
	}
	return b
}

const hexDigits = "0123456789ABCDEF"

// AppendString appends s in quotes. Bytes that are not UTF-8 become U+FFFD, so that what is written is
// always valid JSON; line feeds and other control characters are escaped, so that it is one line.
func AppendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= 0x20 && c != '"' && c != '\\' {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\b':
				b = append(b, '\\', 'b')
			case '\f':
				b = append(b, '\\', 'f')
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			b = append(b, s[start:i]...)
			b = append(b, "\uFFFD"...)
			i++
			start = i
			continue
		}
		i += size
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}
