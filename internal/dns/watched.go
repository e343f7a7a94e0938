package dns

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

const (
	maxFile = 4 << 20 // bytes of a file that are read
	// settled is the age of a file from which on another write gets another
	// modification time, with room for coarse clocks of file systems.
	settled = 2 * time.Second
)

// watched is a file that is parsed again when it has changed. All methods may
// be called concurrently.
type watched[T any] struct {
	path  string
	parse func([]byte) T

	mu    sync.Mutex
	value T
	seen  os.FileInfo // of the version in value, nil if there is none or it was too young to tell
}

// get returns the value of the file. While the file cannot be read, the error
// says why and the last value holds: programs that replace the file may leave
// a moment without one.
func (w *watched[T]) get() (T, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	info, err := os.Stat(w.path)
	if err != nil {
		return w.value, err
	}
	if w.seen != nil && os.SameFile(info, w.seen) && info.ModTime().Equal(w.seen.ModTime()) && info.Size() == w.seen.Size() {
		return w.value, nil
	}
	text, err := readFile(w.path)
	if err != nil {
		return w.value, err
	}
	w.value, w.seen = w.parse(text), nil
	if time.Since(info.ModTime()) > settled {
		w.seen = info
	}
	return w.value, nil
}

func readFile(path string) (text []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(io.LimitReader(f, maxFile))
}
