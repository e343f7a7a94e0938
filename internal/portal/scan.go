package portal

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
)

// maxDepth bounds the nesting of a JSON text, those parts included that are
// skipped. The protocol needs seven levels.
const maxDepth = 128

// scanner reads one JSON text (RFC 8259) from front to back, without copying
// and without a look at what it skips beyond its syntax. The text has to be
// UTF-8. It exists because skipping a bad part of a message and keeping the rest
// takes one pass here, and a pass for each level of nesting with encoding/json.
//
// The first error stays and ends all reading: every method does nothing after
// it and returns a zero value, so that callers look at err once, at the end. An
// error with broken set is one of syntax. Any other is a value that does not
// fit; the rest of the text may still be good: see mark and reset.
type scanner struct {
	b      []byte
	i      int // next byte
	depth  int // open objects and lists
	err    error
	broken bool
}

var errType = errors.New("wrong JSON type")

// fields reads an object, to be used as
//
//	for key := range s.fields { ... }
//
// The body has to read the value that belongs to key, or skip it. Keys are
// compared exactly, and a key may repeat; with an assignment per key the last
// one counts. Errors of values get the key in front of their text, which is why
// the body must only skip the values of keys that it does not know.
func (s *scanner) fields(yield func(key []byte) bool) {
	if !s.open('{') {
		return
	}
	for first := true; s.more(first, '}'); first = false {
		key := s.quoted()
		if s.peek() != ':' {
			s.syntax()
			return
		}
		s.i++
		if !yield(key) {
			return
		}
		if s.err != nil {
			if !s.broken {
				s.err = errors.New(string(key) + ": " + s.err.Error())
			}
			return
		}
	}
}

// list reads a list, to be used as
//
//	for range s.list { ... }
//
// The body has to read or skip one value.
func (s *scanner) list(yield func() bool) {
	if !s.open('[') {
		return
	}
	for first := true; s.more(first, ']'); first = false {
		if !yield() || s.err != nil {
			return
		}
	}
}

// skip reads one value of any type.
func (s *scanner) skip() {
	switch c := s.peek(); c {
	case '{':
		for range s.fields {
			s.skip()
		}
	case '[':
		for range s.list {
			s.skip()
		}
	case '"':
		s.quote()
	case 't':
		s.literal("true")
	case 'f':
		s.literal("false")
	case 'n':
		s.literal("null")
	default:
		s.number()
	}
}

// raw reads one value of any type and returns its text, a part of the input.
func (s *scanner) raw() []byte {
	s.peek()
	start := s.i
	s.skip()
	if s.err != nil {
		return nil
	}
	return s.b[start:s.i:s.i]
}

// quoted reads a string. The result is a part of the input unless the string
// has escapes.
func (s *scanner) quoted() []byte {
	if s.peek() != '"' {
		s.unfit()
		return nil
	}
	text, escaped := s.quote()
	if s.err != nil || !escaped {
		return text
	}
	var decoded string
	if err := json.Unmarshal(s.b[s.i-len(text)-2:s.i], &decoded); err != nil {
		s.syntax()
	}
	return []byte(decoded)
}

// null reads null, or reads nothing and returns false.
func (s *scanner) null() bool {
	if s.peek() != 'n' {
		return false
	}
	s.literal("null")
	return s.err == nil
}

// boolean reads true, or false, or null in the sense of false.
func (s *scanner) boolean() bool {
	switch s.peek() {
	case 't':
		s.literal("true")
		return s.err == nil
	case 'f':
		s.literal("false")
	case 'n':
		s.literal("null")
	default:
		s.unfit()
	}
	return false
}

// natural reads a number without sign, fraction and exponent that is at most
// limit.
func (s *scanner) natural(limit uint64) uint64 {
	if c := s.peek(); c != '-' && (c < '0' || c > '9') {
		s.unfit()
		return 0
	}
	start := s.i
	s.number()
	if s.err != nil {
		return 0
	}
	n, err := strconv.ParseUint(string(s.b[start:s.i]), 10, 64)
	if err != nil || n > limit {
		s.fail("out of range")
		return 0
	}
	return n
}

// end returns the error, which is one of syntax if something follows what was
// read.
func (s *scanner) end() error {
	if s.peek(); s.err == nil && s.i < len(s.b) {
		s.syntax()
	}
	return s.err
}

// fail ends reading with a value that does not fit.
func (s *scanner) fail(text string) {
	if s.err == nil {
		s.err = errors.New(text)
	}
}

// mark is a place in the text to come back to.
type mark struct{ i, depth int }

func (s *scanner) mark() mark { return mark{s.i, s.depth} }

// reset goes back to m and forgets an error that is not one of syntax.
func (s *scanner) reset(m mark) {
	if !s.broken {
		s.i, s.depth, s.err = m.i, m.depth, nil
	}
}

// peek passes white space and returns the byte after it without reading it, or
// zero at the end and after an error. Zero is no byte of JSON outside of
// strings, nor inside.
func (s *scanner) peek() byte {
	for s.err == nil && s.i < len(s.b) {
		switch c := s.b[s.i]; c {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return c
		}
	}
	return 0
}

func (s *scanner) open(bracket byte) bool {
	if s.peek() != bracket {
		s.unfit()
		return false
	}
	if s.depth++; s.depth > maxDepth {
		s.syntax()
		return false
	}
	s.i++
	return true
}

// more passes what stands before the next element of an object or list, or the
// bracket that closes it.
func (s *scanner) more(first bool, bracket byte) bool {
	switch c := s.peek(); {
	case c == bracket:
		s.i++
		s.depth--
		return false
	case first:
	case c == ',':
		s.i++
	default:
		s.syntax()
		return false
	}
	// A key has to follow, not a value that does not fit as one.
	if bracket == '}' && s.peek() != '"' {
		s.syntax()
		return false
	}
	return true
}

// special are the bytes in a string at which quote has to look.
var special = func() (t [256]bool) {
	for c := range 0x20 {
		t[c] = true
	}
	t['"'], t['\\'] = true, true
	return t
}()

// quote reads a string, at whose first quotation mark it stands. It returns
// what is between the quotation marks.
func (s *scanner) quote() (text []byte, escaped bool) {
	if s.err != nil {
		return nil, false
	}
	start := s.i + 1
	for i := start; i < len(s.b); i++ {
		c := s.b[i]
		if !special[c] {
			continue
		}
		if c == '"' {
			s.i = i + 1
			return s.b[start:i:i], escaped
		}
		n := escapeLen(s.b[i:])
		if n == 0 {
			s.i = i
			break
		}
		escaped = true
		i += n - 1
	}
	s.syntax()
	return nil, false
}

// escapeLen returns the length of the escape sequence at the start of b, or
// zero.
func escapeLen(b []byte) int {
	if len(b) < 2 || b[0] != '\\' {
		return 0
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(b) >= 6 && isHex(string(b[2:6])) {
			return 6
		}
	}
	return 0
}

func (s *scanner) literal(word string) {
	if s.err != nil {
		return
	}
	if !bytes.HasPrefix(s.b[s.i:], []byte(word)) {
		s.syntax()
		return
	}
	s.i += len(word)
}

func (s *scanner) number() {
	if s.err != nil {
		return
	}
	if s.at('-') {
		s.i++
	}
	if s.at('0') {
		s.i++
	} else {
		s.digits()
	}
	if s.at('.') {
		s.i++
		s.digits()
	}
	if s.at('e') || s.at('E') {
		s.i++
		if s.at('+') || s.at('-') {
			s.i++
		}
		s.digits()
	}
}

// digits reads at least one.
func (s *scanner) digits() {
	start := s.i
	for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
		s.i++
	}
	if s.i == start {
		s.syntax()
	}
}

func (s *scanner) at(c byte) bool { return s.i < len(s.b) && s.b[s.i] == c }

// syntax ends reading for good.
func (s *scanner) syntax() {
	if !s.broken {
		s.err, s.broken = errors.New("JSON syntax at byte "+strconv.Itoa(s.i)), true
	}
}

// unfit ends reading at a value of another type than the wanted one.
func (s *scanner) unfit() {
	if s.err == nil {
		s.err = errType
	}
}
