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
	// link makes a hard link, which not every file system can.
	link func(old, new string) error
}

var systemIdentity = identitySource{StateFile: "/var/lib/firezone/gateway_id", MachineID: "/etc/machine-id", link: os.Link}

// resolve returns the gateway's identity: the configured one, the stored one,
// one derived from the machine id, or a new one that is stored
// (dataplane §8.2, column G1.6). A stored text of another form is passed over.
// Unless the identity is configured, there has to be a directory for it.
func (s identitySource) resolve(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	if err := makeStateDir(filepath.Dir(s.StateFile)); err != nil {
		return "", identityError("prepare the directory of the", err)
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
	sum := sha256.Sum256([]byte(uuid.NewString()))
	id := hex.EncodeToString(sum[:])
	err := s.writeNew([]byte(`{"id":"` + id + `"}`))
	if !errors.Is(err, fs.ErrExist) {
		return id, err
	}
	// Another process was first, or the file holds something else.
	if id, err := s.stored(); id != "" || err != nil {
		return id, err
	}
	return "", fmt.Errorf(`%s exists and is not of the form {"id":"…"}`, s.StateFile)
}

// makeStateDir makes dir a directory of mode 0770, whatever the umask and
// whether it exists (dataplane §8.2).
func makeStateDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o770); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s: not a directory", dir)
	}
	if info.Mode().Perm() == 0o770 {
		return nil // not everybody who may write to it may change its mode
	}
	return os.Chmod(dir, 0o770)
}

// fileMode is the mode of the state file.
const fileMode = 0o640

// writeNew creates the state file atomically and never replaces one. Where a
// file cannot get its name by a hard link, another process may see it empty.
func (s identitySource) writeNew(content []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(s.StateFile), ".gateway_id-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if err := fill(tmp, content); err != nil {
		return err
	}
	err = s.link(tmp.Name(), s.StateFile)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.OpenFile(s.StateFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	if err := fill(f, content); err != nil {
		return errors.Join(err, os.Remove(s.StateFile))
	}
	return nil
}

// fill writes content to a new file and closes it.
func fill(f *os.File, content []byte) error {
	_, err := f.Write(content)
	return errors.Join(err, f.Chmod(fileMode), f.Sync(), f.Close())
}

func identityError(verb string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s identity: %w (set FIREZONE_ID to do without the file)", verb, err)
}
