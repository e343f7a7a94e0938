package resource

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
)

// maxFile bounds the size that a request may ask for: 1 TiB.
const maxFile = 1 << 40

// Digest is what the HTTP service answers about a body: GET /file/sha256 about
// the file it would send, PUT and POST /upload about what it received.
type Digest struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // hexadecimal
}

// newHandler serves GET /file?size=N&seed=S, GET /file/sha256 with the same
// query, and PUT and POST /upload.
func newHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /file", sendFile)
	mux.HandleFunc("GET /file/sha256", func(w http.ResponseWriter, r *http.Request) {
		if size, seed, ok := fileQuery(w, r); ok {
			answer(w, Digest{Bytes: size, SHA256: ContentSHA256(size, seed)})
		}
	})
	mux.HandleFunc("PUT /upload", receiveFile)
	mux.HandleFunc("POST /upload", receiveFile)
	return mux
}

func sendFile(w http.ResponseWriter, r *http.Request) {
	size, seed, ok := fileQuery(w, r)
	if !ok {
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	// A client that goes away is its own business. The wrapper hides the
	// response's ReadFrom, which would copy in small pieces.
	_, _ = io.CopyBuffer(struct{ io.Writer }{w}, Content(size, seed), make([]byte, chunk))
}

func receiveFile(w http.ResponseWriter, r *http.Request) {
	hash := sha256.New()
	n, err := io.CopyBuffer(hash, r.Body, make([]byte, chunk))
	if err != nil {
		http.Error(w, "body ended early", http.StatusBadRequest)
		return
	}
	answer(w, Digest{Bytes: n, SHA256: hex.EncodeToString(hash.Sum(nil))})
}

func fileQuery(w http.ResponseWriter, r *http.Request) (size int64, seed uint64, ok bool) {
	query := r.URL.Query()
	size, err := strconv.ParseInt(query.Get("size"), 10, 64)
	if err != nil || size < 0 || size > maxFile {
		http.Error(w, "size must be a number of bytes up to 2^40", http.StatusBadRequest)
		return 0, 0, false
	}
	if text := query.Get("seed"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			http.Error(w, "seed must be a number below 2^64", http.StatusBadRequest)
			return 0, 0, false
		}
	}
	return size, seed, true
}

func answer(w http.ResponseWriter, d Digest) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(d)
}
