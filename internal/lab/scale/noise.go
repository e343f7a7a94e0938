package scale

import (
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

// Messages of WireGuard: the type is the first byte, three zero bytes follow
// (WireGuard paper §5.4).
const (
	typeInitiation = 1
	typeResponse   = 2
	typeCookie     = 3
	typeData       = 4

	initiationSize = 148
	responseSize   = 92
	cookieSize     = 64
	dataHeader     = 16
)

// Errors of messages that a client receives.
var (
	errMessage  = errors.New("scale: not a message of that type")
	errForged   = errors.New("scale: message does not authenticate")
	errOutdated = errors.New("scale: message of another handshake")
)

// identity is what one side of a handshake knows before it.
type identity struct {
	private *ecdh.PrivateKey
	public  [32]byte
	gateway [32]byte // the responder's public key
	psk     [32]byte
}

// handshake is one run of Noise IKpsk2 as the initiator. It is over with the
// first response that authenticates.
type handshake struct {
	id        *identity
	index     uint32
	ephemeral *ecdh.PrivateKey
	chain     [32]byte
	hash      [32]byte
	mac1      [16]byte // of the initiation, which a cookie reply refers to
}

// session holds the keys of a finished handshake.
type session struct {
	local, remote uint32 // indices
	send, receive cipher.AEAD
	counter       uint64
	began         time.Time
}

var (
	firstChain = blake2s.Sum256([]byte("Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"))
	firstHash  = digest(firstChain[:], []byte("WireGuard v1 zx2c4 Jason@zx2c4.com"))
)

// initiate starts a handshake and returns its first message. index names the
// session in messages to us. cookie is empty or the last cookie received.
func initiate(id *identity, index uint32, now time.Time, cookie []byte) (*handshake, []byte, error) {
	ephemeral, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	h := &handshake{id: id, index: index, ephemeral: ephemeral, chain: firstChain}
	h.hash = digest(firstHash[:], id.gateway[:])
	gateway, err := ecdh.X25519().NewPublicKey(id.gateway[:])
	if err != nil {
		return nil, nil, err
	}

	m := make([]byte, 0, initiationSize)
	m = binary.LittleEndian.AppendUint32(m, typeInitiation)
	m = binary.LittleEndian.AppendUint32(m, index)
	m = append(m, ephemeral.PublicKey().Bytes()...)
	h.chain = kdf(h.chain, ephemeral.PublicKey().Bytes(), 1)[0]
	h.mix(ephemeral.PublicKey().Bytes())
	key, err := h.agree(ephemeral, gateway)
	if err != nil {
		return nil, nil, err
	}
	m = h.seal(m, key, id.public[:])
	if key, err = h.agree(id.private, gateway); err != nil {
		return nil, nil, err
	}
	m = h.seal(m, key, tai64n(now))

	h.mac1 = mac(macKey("mac1----", id.gateway), m)
	m = append(m, h.mac1[:]...)
	var mac2 [16]byte
	if len(cookie) > 0 {
		mac2 = mac(cookie, m)
	}
	return h, append(m, mac2[:]...), nil
}

// finish reads the response and returns the session.
func (h *handshake) finish(b []byte, now time.Time) (*session, error) {
	if len(b) != responseSize || binary.LittleEndian.Uint32(b) != typeResponse {
		return nil, errMessage
	}
	if binary.LittleEndian.Uint32(b[8:]) != h.index {
		return nil, errOutdated
	}
	theirs, err := ecdh.X25519().NewPublicKey(b[12:44])
	if err != nil {
		return nil, errForged
	}
	g := *h // a forged response must not end the handshake
	g.chain = kdf(g.chain, b[12:44], 1)[0]
	g.mix(b[12:44])
	for _, ours := range []*ecdh.PrivateKey{g.ephemeral, g.id.private} {
		secret, err := ours.ECDH(theirs)
		if err != nil {
			return nil, errForged
		}
		g.chain = kdf(g.chain, secret, 1)[0]
	}
	keys := kdf(g.chain, g.id.psk[:], 3)
	g.chain = keys[0]
	g.mix(keys[1][:])
	if _, err := aead(keys[2]).Open(nil, zeroNonce[:], b[44:60], g.hash[:]); err != nil {
		return nil, errForged
	}
	keys = kdf(g.chain, nil, 2)
	return &session{
		local: h.index, remote: binary.LittleEndian.Uint32(b[4:]),
		send: aead(keys[0]), receive: aead(keys[1]), began: now,
	}, nil
}

// cookie reads a cookie reply to the initiation.
func (h *handshake) cookie(b []byte) ([]byte, error) {
	if len(b) != cookieSize || binary.LittleEndian.Uint32(b) != typeCookie {
		return nil, errMessage
	}
	if binary.LittleEndian.Uint32(b[4:]) != h.index {
		return nil, errOutdated
	}
	x, err := chacha20poly1305.NewX(macKey("cookie--", h.id.gateway))
	if err != nil {
		return nil, err
	}
	plain, err := x.Open(nil, b[8:32], b[32:], h.mac1[:])
	if err != nil {
		return nil, errForged
	}
	return plain, nil
}

// seal returns a data message with the inner packet, which is not padded; an
// empty one is a keepalive.
func (s *session) seal(inner []byte) []byte {
	m := make([]byte, 0, dataHeader+len(inner)+chacha20poly1305.Overhead)
	m = binary.LittleEndian.AppendUint32(m, typeData)
	m = binary.LittleEndian.AppendUint32(m, s.remote)
	m = binary.LittleEndian.AppendUint64(m, s.counter)
	nonce := nonceOf(s.counter)
	s.counter++
	return s.send.Seal(m, nonce[:], inner, nil)
}

// open returns the inner packet of a data message, with its padding.
func (s *session) open(b []byte) ([]byte, error) {
	if len(b) < dataHeader+chacha20poly1305.Overhead || binary.LittleEndian.Uint32(b) != typeData {
		return nil, errMessage
	}
	if binary.LittleEndian.Uint32(b[4:]) != s.local {
		return nil, errOutdated
	}
	nonce := nonceOf(binary.LittleEndian.Uint64(b[8:]))
	inner, err := s.receive.Open(nil, nonce[:], b[dataHeader:], nil)
	if err != nil {
		return nil, errForged
	}
	return inner, nil
}

// agree mixes a shared secret into the chain and returns the key that follows.
func (h *handshake) agree(ours *ecdh.PrivateKey, theirs *ecdh.PublicKey) ([32]byte, error) {
	secret, err := ours.ECDH(theirs)
	if err != nil {
		return [32]byte{}, err
	}
	keys := kdf(h.chain, secret, 2)
	h.chain = keys[0]
	return keys[1], nil
}

// seal appends plain, encrypted, and mixes it into the hash.
func (h *handshake) seal(m []byte, key [32]byte, plain []byte) []byte {
	begin := len(m)
	m = aead(key).Seal(m, zeroNonce[:], plain, h.hash[:])
	h.mix(m[begin:])
	return m
}

func (h *handshake) mix(b []byte) { h.hash = digest(h.hash[:], b) }

var zeroNonce [chacha20poly1305.NonceSize]byte

func nonceOf(counter uint64) (nonce [chacha20poly1305.NonceSize]byte) {
	binary.LittleEndian.PutUint64(nonce[4:], counter)
	return nonce
}

func aead(key [32]byte) cipher.AEAD {
	c, err := chacha20poly1305.New(key[:])
	if err != nil {
		panic(err) // the key has the right length
	}
	return c
}

func digest(parts ...[]byte) (sum [32]byte) {
	h := newHash()
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(sum[:0])
	return sum
}

func newHash() hash.Hash {
	h, err := blake2s.New256(nil)
	if err != nil {
		panic(err) // there is no key to be wrong
	}
	return h
}

// kdf is the paper's KDFn: HKDF with HMAC-BLAKE2s.
func kdf(key [32]byte, input []byte, n int) (out [3][32]byte) {
	secret := keyed(key[:], input)
	var last []byte
	for i := range n {
		out[i] = keyed(secret[:], last, []byte{byte(i + 1)})
		last = out[i][:]
	}
	return out
}

func keyed(key []byte, parts ...[]byte) (sum [32]byte) {
	h := hmac.New(newHash, key)
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(sum[:0])
	return sum
}

func macKey(label string, public [32]byte) []byte {
	key := digest([]byte(label), public[:])
	return key[:]
}

// mac is the paper's MAC: keyed BLAKE2s with 16 bytes of output.
func mac(key, b []byte) (sum [16]byte) {
	h, err := blake2s.New128(key)
	if err != nil {
		panic(err) // keys have 16 or 32 bytes
	}
	h.Write(b)
	h.Sum(sum[:0])
	return sum
}

// tai64n is the time label of initiations. The epoch does not matter as long as
// labels grow.
func tai64n(now time.Time) []byte {
	b := binary.BigEndian.AppendUint64(nil, 1<<62+10+uint64(now.Unix()))
	return binary.BigEndian.AppendUint32(b, uint32(now.Nanosecond()))
}
