package hammer

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"reflect"
)

// inputs makes any number of inputs out of a corpus. Each is a function of the
// seed and its number alone.
type inputs struct {
	seed   uint64
	corpus [][]any
	mends  []Mend
}

// Bounds of what mutation does to one argument, in bytes.
const (
	maxBlock = 64 // copied, inserted or deleted at a time
	maxBytes = 4096
)

// at returns the i-th input, which shares nothing with the corpus nor with any
// other. The corpus itself comes first, as it is.
func (in *inputs) at(i uint64) []any {
	if i < uint64(len(in.corpus)) {
		args := make([]any, len(in.corpus[i]))
		for j, a := range in.corpus[i] {
			args[j] = copyOf(a)
		}
		return args
	}
	m := mutator{rand.New(rand.NewPCG(in.seed, i))}
	base, other := in.corpus[m.IntN(len(in.corpus))], in.corpus[m.IntN(len(in.corpus))]
	args := make([]any, len(base))
	chosen := m.IntN(len(base)) // this one changes in any case
	for j := range base {
		if j == chosen || m.IntN(3) == 0 {
			args[j] = m.mutated(base[j], other[j])
		} else {
			args[j] = copyOf(base[j])
		}
	}
	if m.IntN(2) == 0 {
		for _, mend := range in.mends {
			mend(args)
		}
	}
	return args
}

func copyOf(a any) any {
	if b, ok := a.([]byte); ok {
		return append(make([]byte, 0, len(b)), b...)
	}
	return a
}

type mutator struct{ *rand.Rand }

// mutated returns a changed a. Parts of other, of the same type, may get into it.
func (m mutator) mutated(a, other any) any {
	switch a := a.(type) {
	case []byte:
		return m.bytes(a, other.([]byte))
	case string:
		return string(m.bytes([]byte(a), []byte(other.(string))))
	case bool:
		return !a
	}
	v := reflect.New(reflect.TypeOf(a)).Elem()
	old := reflect.ValueOf(a)
	if v.CanInt() {
		v.SetInt(int64(m.number(uint64(old.Int()))))
	} else {
		v.SetUint(m.number(old.Uint()))
	}
	return v.Interface()
}

// edges are numbers at which something often changes.
var edges = [...]uint64{0, 1, 2, 3, 4, 7, 8, 15, 16, 20, 32, 40, 63, 64, 127, 128, 253, 254, 255, 256, 512, 1024, 1232, 1280, 1500, 4096,
	0x7fff, 0x8000, 0xfffe, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff, 1 << 62, 1<<63 - 1, 1 << 63, 1<<64 - 1}

func (m mutator) number(old uint64) uint64 {
	switch m.IntN(5) {
	case 0:
		return edges[m.IntN(len(edges))]
	case 1:
		return old ^ 1<<m.IntN(64)
	case 2:
		return old ^ 1<<m.IntN(16)
	case 3:
		return old + m.Uint64N(17) - 8
	}
	return m.Uint64()
}

// letters mean something in the texts that targets read.
const letters = "\x00 \t\r\n\"'\\/.,:;=#%*?[]{}()<>@+-_0123456789abcdefnrtu\x7f\x80\xc0\xff"

// bytes returns a changed copy of from.
func (m mutator) bytes(from, other []byte) []byte {
	b := append(make([]byte, 0, len(from)+maxBlock), from...)
	for steps := 1 << m.IntN(4); steps > 0; steps-- { // up to 8
		b = m.step(b, other)
	}
	return b[:min(len(b), maxBytes)]
}

func (m mutator) step(b, other []byte) []byte {
	if len(b) == 0 {
		return append(b, m.block(other)...)
	}
	at := m.place(len(b))
	switch m.IntN(14) {
	case 0, 1:
		b[at] ^= 1 << m.IntN(8)
	case 2:
		b[at] = byte(m.Uint32())
	case 3:
		b[at] = byte(edges[m.IntN(len(edges))])
	case 4:
		b[at] += byte(m.IntN(33) - 16)
	case 5:
		b[at] = letters[m.IntN(len(letters))]
	case 6, 7:
		m.word(b[at&^1:])
	case 8: // a block of its own or of the other over what is there
		if m.IntN(2) == 0 {
			other = b
		}
		copy(b[at:], m.block(other))
	case 9:
		return insert(b, at, m.block(other))
	case 10:
		return insert(b, at, m.block(b))
	case 11:
		end := min(len(b), at+1+m.IntN(maxBlock))
		return append(b[:at], b[end:]...)
	case 12:
		return b[:at]
	case 13: // the end of the other, which begins in the same place or anywhere
		if m.IntN(2) == 0 {
			return append(b[:at], other[min(at, len(other)):]...)
		}
		return append(b[:at], other[m.IntN(len(other)+1):]...)
	}
	return b
}

// place chooses an offset below n: half of the time in a header.
func (m mutator) place(n int) int {
	if m.IntN(2) == 0 {
		n = min(n, 64)
	}
	return m.IntN(n)
}

// word changes the 16-bit or 32-bit number that b begins with, if it is as long.
func (m mutator) word(b []byte) {
	switch {
	case len(b) >= 4 && m.IntN(4) == 0:
		binary.BigEndian.PutUint32(b, uint32(m.number(uint64(binary.BigEndian.Uint32(b)))))
	case len(b) >= 2 && m.IntN(2) == 0: // as a length of what follows
		binary.BigEndian.PutUint16(b, uint16(len(b)+m.IntN(11)-8))
	case len(b) >= 2:
		binary.BigEndian.PutUint16(b, uint16(m.number(uint64(binary.BigEndian.Uint16(b)))))
	}
}

// block returns up to maxBlock bytes of b, or as many random ones.
func (m mutator) block(b []byte) []byte {
	n := 1 + m.IntN(maxBlock)
	if len(b) > 0 && m.IntN(4) != 0 {
		at := m.place(len(b))
		return b[at:min(len(b), at+n)]
	}
	out := bytes.Repeat([]byte{byte(m.Uint32())}, n)
	if m.IntN(2) == 0 {
		for i := range out {
			out[i] = byte(m.Uint32())
		}
	}
	return out
}

// insert returns b with a copy of block before offset at.
func insert(b []byte, at int, block []byte) []byte {
	out := make([]byte, 0, len(b)+len(block)+maxBlock)
	return append(append(append(out, b[:at]...), block...), b[at:]...)
}
