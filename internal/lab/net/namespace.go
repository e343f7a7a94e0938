package labnet

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is one network namespace, held open by a file descriptor. It is
// safe for concurrent use.
type Namespace struct {
	name  string
	links *netlink.Handle

	// mu keeps the descriptor open while a thread enters through it.
	mu        sync.RWMutex
	fd        netns.NsHandle      // guarded by mu
	closed    bool                // guarded by mu
	processes map[*Process]func() // guarded by mu; values kill and reap

	// start carries work to the one thread that lives in the namespace until
	// it is closed. Children are started there, because the kernel sends the
	// parent-death signal when the starting thread ends, not the process.
	start chan func()
}

// Name returns the name given to AddNamespace.
func (n *Namespace) Name() string { return n.name }

// Do runs f on a thread of its own inside the namespace and returns its
// error. Sockets, TUN devices and netlink handles made by f belong to the
// namespace for good and may be used from anywhere afterwards. Goroutines that
// f starts run outside the namespace.
func (n *Namespace) Do(f func() error) error {
	result := make(chan error, 1)
	onOwnThread(func() {
		err := errAborted
		defer func() { result <- err }()
		if enterErr := n.enter(); enterErr != nil {
			err = enterErr
			return
		}
		err = f()
	})
	return <-result
}

// EnterCommand returns the shell command that opens a shell inside the
// namespace for as long as this process keeps the lab up.
func (n *Namespace) EnterCommand() string {
	pid := os.Getpid()
	user := ""
	if isolated() {
		user = fmt.Sprintf("--target=%d --user --preserve-credentials ", pid)
	}
	return fmt.Sprintf("nsenter %s--net=/proc/%d/fd/%d", user, pid, n.descriptor())
}

// SetSysctl writes value to the file below /proc/sys as the namespace sees it.
func (n *Namespace) SetSysctl(path, value string) error {
	return n.Do(func() error {
		return os.WriteFile("/proc/sys/"+path, []byte(value), 0)
	})
}

// EnableForwarding lets the namespace route IPv4 and IPv6 packets between its
// links.
func (n *Namespace) EnableForwarding() error {
	return errors.Join(
		n.SetSysctl("net/ipv4/ip_forward", "1"),
		n.SetSysctl("net/ipv6/conf/all/forwarding", "1"),
	)
}

func newNamespace(name string) (*Namespace, error) {
	n := &Namespace{
		name:      name,
		fd:        netns.None(),
		processes: make(map[*Process]func()),
		start:     make(chan func()),
	}
	made := make(chan error, 1)
	onOwnThread(func() {
		// The thread is new to this namespace only after unshare, so the
		// descriptor is taken here and the thread stays to start children.
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.fd, err = netns.GetFromThread(os.Getpid(), unix.Gettid())
		}
		made <- err
		if err != nil {
			return
		}
		for f := range n.start {
			f()
		}
	})
	if err := <-made; err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	if err := n.prepare(); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func (n *Namespace) prepare() error {
	links, err := netlink.NewHandleAt(n.fd, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	n.links = links
	// Addresses are usable at once and only where the lab puts them.
	for path, value := range map[string]string{
		"net/ipv6/conf/all/disable_ipv6":             "0",
		"net/ipv6/conf/default/disable_ipv6":         "0",
		"net/ipv6/conf/all/accept_dad":               "0",
		"net/ipv6/conf/default/accept_dad":           "0",
		"net/ipv6/conf/default/accept_ra":            "0",
		"net/ipv6/conf/default/router_solicitations": "0",
		"net/ipv4/conf/all/rp_filter":                "0",
		"net/ipv4/conf/default/rp_filter":            "0",
		"net/ipv4/ping_group_range":                  "0 0",
	} {
		if err := n.SetSysctl(path, value); err != nil {
			return fmt.Errorf("sysctl: %w", err)
		}
	}
	lo, err := n.links.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := n.links.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}

// enter moves the calling, locked thread into the namespace.
func (n *Namespace) enter() error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.closed {
		return errClosed
	}
	if err := netns.Set(n.fd); err != nil {
		return fmt.Errorf("enter namespace %s: %w", n.name, err)
	}
	return nil
}

func (n *Namespace) close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	processes := n.processes
	n.processes = nil
	n.mu.Unlock()

	for _, kill := range processes {
		kill()
	}
	close(n.start)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.links != nil {
		n.links.Close()
	}
	return n.fd.Close()
}

// descriptor returns the namespace's file descriptor, -1 after close.
func (n *Namespace) descriptor() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return int(n.fd)
}

// onOwnThread runs f in a goroutine on a thread that ends with it, so that no
// other goroutine ever runs in a namespace that f entered. The main thread is
// never used: it cannot end, and it stands for the process in /proc.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		defer runtime.UnlockOSThread()
		elsewhere := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(elsewhere)
			f()
		}()
		<-elsewhere
	}()
}
