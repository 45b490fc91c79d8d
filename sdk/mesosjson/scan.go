package mesosjson

import (
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Kinds of tokens beside the punctuation, which stands for itself: { } [ ] , : and " for strings.
const (
	endOfText   = 0
	wordToken   = 'w' // true, false, null, Infinity, -Infinity, NaN
	numberToken = '0'
)

// A token is one lexical element. text is a string's contents, unescaped, or the spelling of a word or
// number.
type token struct {
	kind   byte
	text   string
	offset int
}

func (t token) isNull() bool { return t.kind == wordToken && t.text == "null" }

func (t token) describe() string {
	switch t.kind {
	case endOfText:
		return "end of text"
	case '"':
		return "a string"
	case numberToken:
		return "a number"
	case wordToken:
		return t.text
	case '{':
		return "an object"
	case '[':
		return "a list"
	}
	return fmt.Sprintf("%q", t.kind)
}

// scanner splits data into tokens. It holds to the grammar of RFC 8259, plus the words Infinity,
// -Infinity and NaN.
type scanner struct {
	data []byte
	pos  int
}

// scan returns the next token, or why there is none.
func (s *scanner) scan() (token, string) {
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
			continue
		}
		break
	}
	start := s.pos
	if start == len(s.data) {
		return token{kind: endOfText, offset: start}, ""
	}
	switch c := s.data[start]; c {
	case '{', '}', '[', ']', ',', ':':
		s.pos++
		return token{kind: c, offset: start}, ""
	case '"':
		text, reason := s.str()
		return token{kind: '"', text: text, offset: start}, reason
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		if c == '-' && s.hasWord("-Infinity") {
			s.pos += len("-Infinity")
			return token{kind: wordToken, text: "-Infinity", offset: start}, ""
		}
		n := numberLength(s.data[start:])
		if n == 0 {
			return token{offset: start}, "malformed number"
		}
		s.pos += n
		return token{kind: numberToken, text: string(s.data[start:s.pos]), offset: start}, ""
	}
	for _, w := range [...]string{"true", "false", "null", "Infinity", "NaN"} {
		if s.hasWord(w) {
			s.pos += len(w)
			return token{kind: wordToken, text: w, offset: start}, ""
		}
	}
	return token{offset: start}, "unexpected character"
}

func (s *scanner) hasWord(w string) bool {
	rest := s.data[s.pos:]
	return len(rest) >= len(w) && string(rest[:len(w)]) == w
}

// numberLength returns how many bytes of b are a JSON number, 0 when it does not begin with one.
func numberLength[T []byte | string](b T) int {
	i := 0
	digits := func() bool {
		from := i
		for i < len(b) && b[i] >= '0' && b[i] <= '9' {
			i++
		}
		return i > from
	}
	if i < len(b) && b[i] == '-' {
		i++
	}
	if i < len(b) && b[i] == '0' {
		i++
	} else if !digits() {
		return 0
	}
	if i < len(b) && b[i] == '.' {
		i++
		if !digits() {
			return 0
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if !digits() {
			return 0
		}
	}
	return i
}

func isNumber(s string) bool { return s != "" && numberLength(s) == len(s) }

// str reads a string whose opening quote is next.
func (s *scanner) str() (string, string) {
	s.pos++
	start := s.pos
	// Most strings have no escapes and are taken in one piece.
	for s.pos < len(s.data) {
		c := s.data[s.pos]
		if c == '"' {
			raw := s.data[start:s.pos]
			if !utf8.Valid(raw) {
				s.pos = start
				return "", "string is not valid UTF-8"
			}
			s.pos++
			return string(raw), ""
		}
		if c == '\\' {
			return s.escaped(start)
		}
		if c < 0x20 {
			return "", "control character in a string"
		}
		s.pos++
	}
	return "", "string without an end"
}

// escaped reads on where str met the first backslash of a string that began at start.
func (s *scanner) escaped(start int) (string, string) {
	var b strings.Builder
	from := start
	flush := func() bool {
		if !utf8.Valid(s.data[from:s.pos]) {
			return false
		}
		b.Write(s.data[from:s.pos])
		return true
	}
	for s.pos < len(s.data) {
		c := s.data[s.pos]
		switch {
		case c == '"':
			if !flush() {
				return "", "string is not valid UTF-8"
			}
			s.pos++
			return b.String(), ""
		case c < 0x20:
			return "", "control character in a string"
		case c != '\\':
			s.pos++
			continue
		}
		if !flush() {
			return "", "string is not valid UTF-8"
		}
		if s.pos+1 == len(s.data) {
			return "", "string without an end"
		}
		e := s.data[s.pos+1]
		if e == 'u' {
			r, n := s.unicode()
			if n == 0 {
				return "", "malformed escape in a string"
			}
			b.WriteRune(r)
			s.pos += n
			from = s.pos
			continue
		}
		i := strings.IndexByte(`"\/bfnrt`, e)
		if i < 0 {
			return "", "malformed escape in a string"
		}
		b.WriteByte("\"\\/\b\f\n\r\t"[i])
		s.pos += 2
		from = s.pos
	}
	return "", "string without an end"
}

// unicode reads \uXXXX, or two of them that make a pair, at pos and returns how many bytes it took, 0
// when it is malformed. Half a pair becomes U+FFFD.
func (s *scanner) unicode() (rune, int) {
	r, ok := hex4(s.data[s.pos:])
	if !ok {
		return 0, 0
	}
	if !utf16.IsSurrogate(r) {
		return r, 6
	}
	if low, ok := hex4(s.data[s.pos+6:]); ok {
		if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
			return pair, 12
		}
	}
	return utf8.RuneError, 6
}

// hex4 reads \uXXXX at the start of b.
func hex4(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range b[2:6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
