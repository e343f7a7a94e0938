package tour

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// WriteTable prints the results as a table of what was promised and measured.
func WriteTable(w io.Writer, results []Result) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PROMISED\tMEASURED\tOK")
	for _, r := range results {
		measured := r.Measured
		if r.Error != "" {
			reason, _, _ := strings.Cut(r.Error, "\n")
			measured = strings.TrimPrefix(measured+": "+reason, ": ")
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", r.Promise, measured, verdict(r))
	}
	return table.Flush()
}

func verdict(r Result) string {
	switch {
	case r.OK:
		return "ok"
	case r.Skipped:
		return "skipped"
	default:
		return "FAILED"
	}
}

// Progress prints steps while they happen: on a terminal with a spinner and the
// time that has passed, elsewhere one line for each step that has ended.
type Progress struct {
	out      io.Writer
	terminal bool

	mu      sync.Mutex
	stop    chan struct{} // ends the spinner
	stopped chan struct{}
}

// NewProgress returns a Progress that prints to out.
func NewProgress(out io.Writer) *Progress {
	return &Progress{out: out, terminal: isTerminal(out)}
}

// Note prints a line between steps.
func (p *Progress) Note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, format+"\n", args...)
}

// Started implements Observer.
func (p *Progress) Started(s Step) { p.Begin(s.Promise) }

// Begin shows what is being done until the next End.
func (p *Progress) Begin(what string) {
	if !p.terminal {
		return
	}
	p.stop, p.stopped = make(chan struct{}), make(chan struct{})
	go p.spin(what, p.stop, p.stopped)
}

// End replaces what Begin showed by a line about how it went.
func (p *Progress) End(line string) {
	if p.terminal && p.stop != nil {
		close(p.stop)
		<-p.stopped
		p.stop = nil
	}
	p.Note("%s", line)
}

// Ended implements Observer.
func (p *Progress) Ended(r Result, log []string) {
	mark := map[string]string{"ok": "✓", "skipped": "-", "FAILED": "✗"}[verdict(r)]
	line := fmt.Sprintf("%s %s", mark, r.Promise)
	if r.Measured != "" {
		line += ": " + r.Measured
	}
	p.End(fmt.Sprintf("%s (%.1f s)", line, r.Seconds))
	if r.Error != "" {
		p.Note("    %s", strings.ReplaceAll(r.Error, "\n", "\n    "))
	}
	if len(log) > 0 {
		p.Note("    last lines of the gateway's log:\n      %s", strings.Join(log, "\n      "))
	}
}

const clearLine = "\r\x1b[K"

func (p *Progress) spin(what string, stop <-chan struct{}, stopped chan<- struct{}) {
	defer close(stopped)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	wheel, begin := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"), time.Now()
	for i := 0; ; i++ {
		p.mu.Lock()
		fmt.Fprintf(p.out, "%s%c %s %.1f s", clearLine, wheel[i%len(wheel)], what, time.Since(begin).Seconds())
		p.mu.Unlock()
		select {
		case <-tick.C:
		case <-stop:
			p.mu.Lock()
			fmt.Fprint(p.out, clearLine)
			p.mu.Unlock()
			return
		}
	}
}

func isTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("TERM") != "dumb"
}

var _ Observer = (*Progress)(nil)
