package labnet_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	labnet "firezone-gateway/internal/lab/net"
)

// asSeen returns the file at path as a process in the namespace sees it.
func asSeen(t *testing.T, ns *labnet.Namespace, path string, files ...labnet.File) string {
	t.Helper()
	var output bytes.Buffer
	cmd := exec.Command("cat", path)
	cmd.Stdout, cmd.Stderr = &output, os.Stderr
	process, err := ns.StartProcess(cmd, files...)
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Wait(); err != nil {
		t.Fatal(err)
	}
	return output.String()
}

func TestProcessSeesOtherFilesInThePlaceOfTheSystems(t *testing.T) {
	ns := namespace(t)
	const hosts = "/etc/hosts"
	before, err := os.ReadFile(hosts)
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(t.TempDir(), "hosts")
	for _, text := range []string{"192.0.2.1 portal\n", "192.0.2.2 portal\n"} {
		if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := asSeen(t, ns, hosts, labnet.File{Source: source, Target: hosts}); got != text {
			t.Errorf("process sees %q, want %q", got, text)
		}
	}
	if got := asSeen(t, ns, hosts); got != string(before) {
		t.Error("a process without files of its own sees other ones than the system's")
	}
	if after, err := os.ReadFile(hosts); err != nil || string(after) != string(before) {
		t.Errorf("the system's file has changed, error %v", err)
	}
}

func TestProcessAmongFilesIsInItsNamespaceAndDiesWithTheLab(t *testing.T) {
	requireNamespaces(t)
	lab := labnet.New()
	ns, err := lab.AddNamespace("alone")
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(source, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	process, devices := startChild(t, ns, labnet.File{Source: source, Target: "/etc/hosts"})
	if devices != "lo" {
		t.Errorf("child sees devices %q, want lo alone", devices)
	}
	// Threads end when the functions do that were locked to them.
	for range 8 {
		if err := ns.Do(func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-process.Done():
		t.Fatalf("process is gone: %v", process.Wait())
	default:
	}
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-process.Done():
	default:
		t.Fatal("process outlives the lab")
	}
}

func TestMissingFileIsAnError(t *testing.T) {
	ns := namespace(t)
	missing := labnet.File{Source: filepath.Join(t.TempDir(), "none"), Target: "/etc/hosts"}
	if _, err := ns.StartProcess(exec.Command("true"), missing); !errors.Is(err, labnet.ErrMount) {
		t.Errorf("error %v", err)
	}
}
