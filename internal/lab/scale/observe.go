package scale

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
)

// observer reads what the Go runtime of the daemon prints among its log: a line
// for each garbage collection (GODEBUG=gctrace=1), and every goroutine with its
// stack when it is told to quit. The rest goes to next. So any daemon can be
// measured, without a door into it that the product would have to have.
type observer struct {
	next io.Writer

	mu         sync.Mutex
	partial    []byte
	cycles     int // collections seen
	latest     memory
	goroutines int
	created    map[string]int // goroutines by the function that started them
	dumping    bool
}

// memory is what is live after a collection, in bytes. The runtime prints whole
// MiB, rounded down.
type memory struct {
	Heap   int64 `json:"heap"`
	Stacks int64 `json:"stacks"`
}

const maxLine = 16 << 10

func newObserver(next io.Writer) *observer {
	return &observer{next: next, created: make(map[string]int)}
}

// Write implements io.Writer.
func (o *observer) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.partial = append(o.partial, p...)
	for {
		line, rest, complete := bytes.Cut(o.partial, []byte("\n"))
		if !complete {
			break
		}
		o.line(string(line))
		o.partial = append(o.partial[:0], rest...)
	}
	if len(o.partial) > maxLine {
		o.partial = o.partial[:0]
	}
	return o.next.Write(p)
}

var (
	collection = regexp.MustCompile(`gc \d+ @.* (\d+)->(\d+)->(\d+) MB, \d+ MB goal, (\d+) MB stacks`)
	goroutine  = regexp.MustCompile(`^goroutine \d+ .*\[.*\]:$`)
	creator    = regexp.MustCompile(`^created by (.+?)(?: in goroutine \d+)?$`)
)

func (o *observer) line(line string) {
	if m := collection.FindStringSubmatch(line); m != nil {
		heap, err1 := strconv.ParseInt(m[3], 10, 32)
		stacks, err2 := strconv.ParseInt(m[4], 10, 32)
		if err1 == nil && err2 == nil {
			o.cycles++
			o.latest = memory{Heap: heap << 20, Stacks: stacks << 20}
		}
		return
	}
	switch {
	case strings.HasPrefix(line, "SIGQUIT: quit"):
		o.dumping = true
	case !o.dumping:
	case goroutine.MatchString(line):
		o.goroutines++
	default:
		if m := creator.FindStringSubmatch(line); m != nil {
			o.created[m[1]]++
		}
	}
}

func (o *observer) collections() (int, memory) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cycles, o.latest
}

// settledCycles is after how many collections pools are empty, too.
const settledCycles = 3

// settledMemory makes the daemon collect its garbage some times and returns what
// is live then. A daemon at rest collects every two minutes only, so it is kept
// busy with health checks, whose garbage is the least that can be asked for.
func (w *world) settledMemory(ctx context.Context) (memory, error) {
	ctx, cancel := context.WithTimeout(ctx, collectPatience)
	defer cancel()
	first, _ := w.observer.collections()
	for {
		n, m := w.observer.collections()
		if n-first >= settledCycles {
			return m, nil
		}
		if err := w.litter(ctx); err != nil {
			return m, fmt.Errorf("make the gateway collect its garbage: %w", err)
		}
	}
}

const (
	collectPatience = 2 * time.Minute
	requestsAtOnce  = 64
	checkRequest    = "GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n"
	checkAnswer     = "HTTP/1.1 200"
)

// litter sends pipelined health checks until the connection has seen enough, or
// there was a collection.
func (w *world) litter(ctx context.Context) error {
	conn, err := w.gateway.DialContext(ctx, "tcp", health)
	if err != nil {
		return err
	}
	defer conn.Close()
	before, _ := w.observer.collections()
	burst := []byte(strings.Repeat(checkRequest, requestsAtOnce))
	b := make([]byte, 64<<10)
	for {
		if n, _ := w.observer.collections(); n != before {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := exchange(conn, burst, b); err != nil {
			return err
		}
	}
}

// exchange sends a burst of checks and reads as many answers.
func exchange(conn net.Conn, burst, b []byte) error {
	if err := conn.SetDeadline(time.Now().Add(collectPatience)); err != nil {
		return err
	}
	if _, err := conn.Write(burst); err != nil {
		return err
	}
	var rest []byte
	for answers := 0; answers < requestsAtOnce; {
		n, err := conn.Read(b)
		if err != nil {
			return err
		}
		rest = append(rest, b[:n]...)
		found := bytes.Count(rest, []byte(checkAnswer))
		answers += found
		if found > 0 {
			rest = rest[bytes.LastIndex(rest, []byte(checkAnswer))+len(checkAnswer):]
		}
		rest = rest[max(0, len(rest)-len(checkAnswer)+1):]
	}
	return nil
}

// Site is a place in the code that starts a goroutine for each client.
type Site struct {
	Function  string  `json:"function"`
	PerClient float64 `json:"per_client"`
}

// quit ends the daemon with a dump of its goroutines and counts them.
func (w *world) quit(ctx context.Context, clients int) (total int, sites []Site, err error) {
	if err := w.daemon.Signal(syscall.SIGQUIT); err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, collectPatience)
	defer cancel()
	select {
	case <-w.daemon.Done():
	case <-ctx.Done():
		return 0, nil, fmt.Errorf("gateway does not quit: %w", ctx.Err())
	}
	w.observer.mu.Lock()
	defer w.observer.mu.Unlock()
	if w.observer.goroutines == 0 {
		return 0, nil, errors.New("gateway ended without a dump of its goroutines")
	}
	return w.observer.goroutines, perClient(w.observer.created, clients), nil
}

// perClient returns where goroutines come from of which half of the clients, or
// more, have one.
func perClient(created map[string]int, clients int) []Site {
	var sites []Site
	for function, n := range created {
		if n >= max(1, clients/2) {
			sites = append(sites, Site{function, float64(n) / float64(clients)})
		}
	}
	slices.SortFunc(sites, func(a, b Site) int {
		return cmp.Or(cmp.Compare(b.PerClient, a.PerClient), cmp.Compare(a.Function, b.Function))
	})
	return sites
}

// resident returns the resident memory of a process in bytes.
func resident(g *gateway.Gateway) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.PID()))
	if err != nil {
		return 0, err
	}
	return residentOf(status)
}

func residentOf(status []byte) (int64, error) {
	_, rest, ok := bytes.Cut(status, []byte("\nVmRSS:"))
	fields := bytes.Fields(rest)
	if !ok || len(fields) == 0 {
		return 0, errors.New("process has no resident memory")
	}
	kib, err := strconv.ParseInt(string(fields[0]), 10, 64)
	return kib << 10, err
}

// load returns the share of one processor that the daemon uses for a while.
func load(ctx context.Context, g interface{ Usage() (labnet.Usage, error) }, d time.Duration) (float64, error) {
	before, err := g.Usage()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := pause(ctx, d); err != nil {
		return 0, err
	}
	elapsed := time.Since(begin)
	after, err := g.Usage()
	return float64(after.CPU-before.CPU) / float64(elapsed), err
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// processors is how much processor time was used, and by whom.
type processors struct{ gateway, lab, all time.Duration }

// used reads the processor time that the daemon, this process and the whole
// machine have used.
func used(g interface{ Usage() (labnet.Usage, error) }) (p processors, err error) {
	u, err := g.Usage()
	if err != nil {
		return p, err
	}
	var own unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
		return p, fmt.Errorf("own processor time: %w", err)
	}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return p, err
	}
	all, err := busy(stat)
	return processors{u.CPU, time.Duration(own.Utime.Nano() + own.Stime.Nano()), all}, err
}

// busy reads the first line of proc_stat(5): user, nice, system, idle, iowait, irq,
// softirq and steal, in ticks of 1/100 s.
func busy(stat []byte) (total time.Duration, err error) {
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, errors.New("machine has no processor times")
	}
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		ticks, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(ticks) * time.Second / 100
	}
	return total, nil
}
