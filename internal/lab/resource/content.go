package resource

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
)

// chunk is how much of a stream is made, hashed or moved at a time, in bytes.
const chunk = 256 << 10

// Content returns a stream of size bytes that look random and depend on the
// seed only: the key stream of AES-CTR, which is as fast as the machine's
// memory where the processor knows AES.
func Content(size int64, seed uint64) io.Reader {
	var key [16]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // a key of 16 bytes is always accepted
	}
	return &content{stream: cipher.NewCTR(block, make([]byte, aes.BlockSize)), left: size}
}

// ContentSHA256 returns the hexadecimal SHA-256 of Content(size, seed).
func ContentSHA256(size int64, seed uint64) string {
	hash := sha256.New()
	if _, err := io.CopyBuffer(hash, Content(size, seed), make([]byte, chunk)); err != nil {
		panic(err) // neither end of the copy can fail
	}
	return hex.EncodeToString(hash.Sum(nil))
}

type content struct {
	stream cipher.Stream
	left   int64
}

func (c *content) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), c.left)]
	clear(p)
	c.stream.XORKeyStream(p, p)
	c.left -= int64(len(p))
	return len(p), nil
}
