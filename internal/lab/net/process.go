package labnet

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// Process is a child that runs inside a namespace.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // set before done is closed
}

// Usage is what a process has used so far.
type Usage struct {
	CPU     time.Duration // user and system time of all threads
	PeakRSS uint64        // bytes
}

// StartProcess starts cmd inside the namespace. The child is killed when this
// process dies or the lab is closed, whichever comes first. It forms a process
// group of its own, so that an interrupt typed at the terminal reaches the lab
// only, which then ends its children in order. The caller must not call
// cmd.Wait.
//
// The child sees the given files in place of those of the system; see File.
func (n *Namespace) StartProcess(cmd *exec.Cmd, files ...File) (*Process, error) {
	attr := syscall.SysProcAttr{}
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	attr.Setpgid = true
	attr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr = &attr

	p := &Process{cmd: cmd, done: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, errClosed
	}
	started := make(chan error, 1)
	if len(files) == 0 {
		n.start <- func() { started <- cmd.Start() }
	} else {
		n.startAmong(files, p, started)
	}
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start in namespace %s: %w", n.name, err)
	}
	n.processes[p] = func() {
		_ = p.Signal(syscall.SIGKILL)
		<-p.done
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.processes, p)
	}()
	return p, nil
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process and returns its error as exec.Cmd.Wait
// does.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Signal sends a signal. A process that has ended answers os.ErrProcessDone.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop sends SIGTERM, then SIGKILL when the process still runs after grace,
// and returns what Wait returns.
func (p *Process) Stop(grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		_ = p.Signal(syscall.SIGKILL)
	}
	return p.Wait()
}

// Usage reads the processor time and the peak resident memory of the running
// process. The memory in ProcessState of an ended child is no substitute: it
// includes the parent's, because the child shares it until it executes.
func (p *Process) Usage() (Usage, error) {
	dir := fmt.Sprintf("/proc/%d/", p.PID())
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return Usage{}, err
	}
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return Usage{}, err
	}
	cpu, err := cpuTime(stat)
	if err != nil {
		return Usage{}, err
	}
	rss, err := peakRSS(status)
	return Usage{CPU: cpu, PeakRSS: rss}, err
}

// cpuTime reads utime and stime, fields 14 and 15 of proc_pid_stat(5), which
// count in ticks of 1/100 s on every architecture Go runs on.
func cpuTime(stat []byte) (time.Duration, error) {
	const tick = time.Second / 100
	// The second field, the command name, may contain anything up to ')'.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, errors.New("process has no CPU times")
	}
	user, err1 := strconv.ParseInt(string(fields[11]), 10, 64)
	system, err2 := strconv.ParseInt(string(fields[12]), 10, 64)
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

func peakRSS(status []byte) (uint64, error) {
	_, rest, ok := bytes.Cut(status, []byte("\nVmHWM:"))
	fields := bytes.Fields(rest)
	if !ok || len(fields) == 0 {
		return 0, errors.New("process has no resident memory")
	}
	kib, err := strconv.ParseUint(string(fields[0]), 10, 64)
	return kib << 10, err
}
