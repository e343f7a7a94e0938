package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
)

// identityKey is the application key under which the machine id is hashed
// (dataplane §8.2).
const identityKey = "753b38f9f96947ef8083802d5909a372"

// identitySource names the files an identity may come from.
type identitySource struct {
	StateFile string // {"id": "…"}
	MachineID string
}

var systemIdentity = identitySource{StateFile: "/var/lib/firezone/gateway_id", MachineID: "/etc/machine-id"}

// resolve returns the gateway's identity: the configured one, the stored one,
// one derived from the machine id, or a new one that is stored
// (dataplane §8.2, column G1.6). A stored text of another form is passed over.
func (s identitySource) resolve(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	id, err := s.stored()
	if id != "" || err != nil {
		return id, identityError("read", err)
	}
	if raw, err := os.ReadFile(s.MachineID); err == nil && isMachineID(raw) {
		mac := hmac.New(sha256.New, []byte(identityKey))
		mac.Write(raw)
		return hex.EncodeToString(mac.Sum(nil)), nil
	}
	id, err = s.create()
	return id, identityError("store", err)
}

// stored returns "" without error if there is no identity in the state file.
func (s identitySource) stored() (string, error) {
	raw, err := os.ReadFile(s.StateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	var state struct {
		ID string `json:"id"`
	}
	if err != nil || json.Unmarshal(raw, &state) != nil {
		return "", err
	}
	return state.ID, nil
}

// isMachineID refuses what a machine has before its first boot is over, which is
// the same on many (machine-id(5)).
func isMachineID(raw []byte) bool {
	text := strings.TrimSpace(string(raw))
	return text != "" && text != "uninitialized"
}

func (s identitySource) create() (string, error) {
	if err := makeStateDir(filepath.Dir(s.StateFile)); err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(uuid.NewString()))
	id := hex.EncodeToString(sum[:])
	err := writeNew(s.StateFile, []byte(`{"id":"`+id+`"}`))
	if !errors.Is(err, fs.ErrExist) {
		return id, err
	}
	// Another process was first, or the file holds something else.
	if id, err := s.stored(); id != "" || err != nil {
		return id, err
	}
	return "", fmt.Errorf(`%s exists and is not of the form {"id":"…"}`, s.StateFile)
}

// makeStateDir creates dir with mode 0770 whatever the umask. One that exists
// stays as it is.
func makeStateDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o770)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o770)
}

// writeNew creates name atomically with mode 0640 and never replaces a file.
func writeNew(name string, content []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), ".gateway_id-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(content)
	err = errors.Join(err, tmp.Chmod(0o640), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	return os.Link(tmp.Name(), name)
}

func identityError(verb string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s identity: %w (set FIREZONE_ID to do without the file)", verb, err)
}
