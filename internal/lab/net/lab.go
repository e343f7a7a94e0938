// Package labnet builds networks for the lab out of Linux network namespaces:
// hosts, routers with a kind of NAT, and the links between them. Everything is
// made through netlink and nftables from inside the process and vanishes with
// it; nothing is left under /run, and no external command is run.
package labnet

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Lab is a set of network namespaces that live and end together. It is safe
// for concurrent use.
type Lab struct {
	mu         sync.Mutex
	namespaces []*Namespace   // guarded by mu
	closed     bool           // guarded by mu
	links      int            // guarded by mu
	closers    []func() error // guarded by mu
}

// New returns a Lab without namespaces. Call EnsureIsolated first.
func New() *Lab { return &Lab{} }

// AddNamespace makes a network namespace in which the loopback interface is up
// and nothing else exists. The name appears in errors and in Describe only.
func (l *Lab) AddNamespace(name string) (*Namespace, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errClosed
	}
	ns, err := newNamespace(name)
	if err != nil {
		return nil, fmt.Errorf("namespace %s: %w", name, err)
	}
	l.namespaces = append(l.namespaces, ns)
	return ns, nil
}

// Namespaces returns the namespaces in the order of their making.
func (l *Lab) Namespaces() []*Namespace {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.namespaces)
}

// nextDevice returns a device index that the kernel would not choose by itself.
func (l *Lab) nextDevice() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.links++
	return 1000 + l.links
}

// onClose makes Close call f, after the processes have ended.
func (l *Lab) onClose(f func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = append(l.closers, f)
}

// Close kills the processes that still run in the namespaces and removes the
// namespaces with all their links. A namespace whose sockets or TUN devices
// are still open elsewhere in this process goes when the last of them is
// closed. Close may be called more than once.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	var errs []error
	for _, ns := range slices.Backward(l.namespaces) {
		if err := ns.close(); err != nil {
			errs = append(errs, fmt.Errorf("namespace %s: %w", ns.name, err))
		}
	}
	for _, f := range slices.Backward(l.closers) {
		errs = append(errs, f())
	}
	l.namespaces, l.closers = nil, nil
	return errors.Join(errs...)
}

var (
	errClosed  = errors.New("lab is closed")
	errAborted = errors.New("function ended its goroutine")
)
