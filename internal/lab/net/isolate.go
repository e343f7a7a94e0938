package labnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// isolationVariable marks a process that runs in a user namespace of its own.
const isolationVariable = "FIREZONE_LAB_ISOLATED"

// EnsureIsolated returns nil when this process may build a Lab. Where it lacks
// the privilege, it starts its own executable again, with the same arguments,
// as root of a new user, network and mount namespace, passes signals on to it,
// and exits with its exit code: it does not return then. The new process has a
// loopback interface and no way to the machine's network. Where that is
// impossible as well, the error says what to do. Call it first thing in main
// or TestMain.
func EnsureIsolated() error {
	err := available()
	if err == nil && isolated() {
		// The new network namespace comes with its loopback down.
		err = setLoopbackUp()
	}
	if err == nil {
		return nil
	}
	if isolated() {
		return fmt.Errorf("network namespaces are not usable in a user namespace either: %w\n%s", err, advice)
	}
	code, runErr := runIsolated()
	if runErr != nil {
		return fmt.Errorf("network namespaces are not usable: %w\n%s", errors.Join(err, runErr), advice)
	}
	os.Exit(code)
	return nil
}

// CheckTUN returns nil when TUN devices can be made in the lab's namespaces,
// and otherwise an error that says what to do.
func CheckTUN() error {
	ns, err := newNamespace("probe")
	if err != nil {
		return err
	}
	err = ns.Do(makeTUN)
	if closeErr := ns.close(); err == nil {
		return closeErr
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("TUN: %w\nload the module (modprobe tun), or give the container the device /dev/net/tun", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("TUN: %w\nallow everybody to open it (chmod 0666 /dev/net/tun), or run as root", err)
	}
	return fmt.Errorf("TUN: %w", err)
}

const advice = `Do one of these:
  - run as root, in a container with the capabilities NET_ADMIN and SYS_ADMIN and a writable /proc/sys
  - allow user namespaces, as root, whichever of these the system has:
      sysctl -w kernel.unprivileged_userns_clone=1
      sysctl -w kernel.apparmor_restrict_unprivileged_userns=0
      sysctl -w user.max_user_namespaces=10000
  - load the kernel's modules veth, nf_tables, nft_masq and nft_ct`

// available tries everything a lab needs from the kernel once.
func available() error {
	lab := New()
	err := func() error {
		a, err := lab.AddNamespace("probe")
		if err != nil {
			return err
		}
		if err := a.EnableForwarding(); err != nil {
			return err
		}
		if err := lab.Connect(End{Namespace: a, Device: "a"}, End{Namespace: a, Device: "b"}); err != nil {
			return err
		}
		return a.masquerade("a", "b")
	}()
	return errors.Join(err, lab.Close())
}

func setLoopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

func isolated() bool { return os.Getenv(isolationVariable) != "" }

// runIsolated runs this executable in new namespaces and returns its exit code.
func runIsolated() (int, error) {
	executable, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(executable, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), isolationVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Setpgid:     true,
		Pdeathsig:   syscall.SIGKILL,
	}

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)

	// The kernel sends the parent-death signal when this thread ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("user namespace: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case sig := <-signals:
			_ = cmd.Process.Signal(sig)
		case err := <-ended:
			if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
				return 0, err
			}
			return exitCode(cmd.ProcessState), nil
		}
	}
}

// exitCode gives a death by signal the number a shell would give it.
func exitCode(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}

func makeTUN() error {
	const device = "/dev/net/tun"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: device, Err: err}
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("probe")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return &fs.PathError{Op: "create", Path: device, Err: err}
	}
	return nil
}
