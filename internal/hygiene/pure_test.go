package hygiene

import (
	"fmt"
	"go/ast"
	"path"
	"slices"
	"strings"
	"testing"
)

// pureLibraries are the only libraries that pure packages use: an id type, a
// prefix table, a STUN codec.
var pureLibraries = []string{
	"github.com/google/uuid", "github.com/pion/stun/v3",
}

// impureStandard are the packages of the standard library that reach outside
// the process; everything below net is among them but two.
var impureStandard = []string{"net", "os", "syscall", "log", "io/ioutil", "plugin", "unsafe", "runtime"}

var pureNet = []string{"net/netip", "net/url"}

// clockFunctions are the functions of package time that read or wait for the
// clock.
var clockFunctions = []string{
	"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Sleep",
}

func TestPurePackagesArePure(t *testing.T) {
	checked := 0
	for _, f := range repository(t) {
		if layers[f.path] != pure {
			continue
		}
		checked++
		for _, s := range f.sources {
			if !s.isTest() {
				report(t, impurities(s))
			}
		}
	}
	if checked < 7 {
		t.Errorf("checked %d pure packages, there are more", checked)
	}
}

func TestImpuritiesSeesEachOfThem(t *testing.T) {
	for _, tc := range []struct {
		name, text, want string
	}{
		{"time is passed in", `import "time"; func f(now time.Time) time.Time { return now.Add(time.Second) }`, ""},
		{"time is read", `import "time"; var x = time.Now()`, "time.Now"},
		{"time is read under another name", `import clock "time"; func f() { _ = clock.Since }`, "time.Since"},
		{"a timer is set", `import "time"; var x = time.NewTimer(1)`, "time.NewTimer"},
		{"addresses are values", `import "net/netip"; var x netip.Addr`, ""},
		{"a URL is a value", `import "net/url"; var x url.URL`, ""},
		{"a socket", `import "net"; var x net.Conn`, "imports net"},
		{"a web client", `import "net/http"; var x http.Client`, "imports net/http"},
		{"a file", `import "os"; var x = os.Args`, "imports os"},
		{"a process", `import "os/exec"; var x exec.Cmd`, "imports os/exec"},
		{"the kernel", `import "golang.org/x/sys/unix"; var x = unix.AF_INET`, "imports golang.org/x/sys/unix"},
		{"an unlisted library", `import "github.com/gorilla/websocket"; var x websocket.Conn`, "imports github.com/gorilla/websocket"},
		{"a listed library", `import "github.com/google/uuid"; var x uuid.UUID`, ""},
		{"another major version of a listed library", `import "github.com/pion/stun"; var x stun.Message`, "imports github.com/pion/stun"},
		{"everything under no name", `import . "time"; var x = Now()`, "without a name"},
		{"a goroutine", `func f() { go f() }`, "goroutine"},
		{"a log value", `import "log/slog"; func f() slog.Value { return slog.StringValue("x") }`, ""},
		{"a logger", `import "log/slog"; type t struct{ l *slog.Logger }`, "slog.Logger"},
		{"the default logger", `import "log/slog"; func f() { slog.Info("x") }`, "slog.Info"},
		{"the old logger", `import "log"; func f() { log.Print("x") }`, "imports log"},
		{"a method that is called like a clock's", `type c struct{}; func (c) Now() int { return 0 }; var time c; var x = time.Now()`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			expect(t, impurities(parse(t, "internal/packet/x.go", "package x\n\n"+tc.text)), tc.want)
		})
	}
}

// impurities reports what a pure package may not do.
func impurities(s *source) []string {
	var problems []string
	found := func(n ast.Node, format string, args ...any) {
		problems = append(problems, s.at(n)+" "+fmt.Sprintf(format, args...)+", and "+path.Dir(s.path)+" is pure")
	}
	for _, spec := range s.ast.Imports {
		imported := importPath(spec)
		switch {
		case spec.Name != nil && spec.Name.Name == ".":
			found(spec, "imports %s without a name", imported)
		case !pureImport(imported):
			found(spec, "imports %s", imported)
		}
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			found(n, "starts a goroutine")
		case *ast.SelectorExpr:
			imported, name := s.selected(n)
			if imported == "time" && slices.Contains(clockFunctions, name) {
				found(n, "uses time.%s", name)
			}
			if imported == "log/slog" && !isLogValue(name) {
				found(n, "uses slog.%s", name)
			}
		}
		return true
	})
	return problems
}

func pureImport(imported string) bool {
	if _, ours := inModule(imported); ours {
		return true // the layers decide
	}
	if first, _, _ := strings.Cut(imported, "/"); strings.Contains(first, ".") {
		return slices.Contains(pureLibraries, imported)
	}
	for _, impure := range impureStandard {
		if under(imported, impure) {
			return slices.Contains(pureNet, imported) || imported == "log/slog"
		}
	}
	return true
}

// isLogValue reports whether slog's name only describes a value to be logged.
func isLogValue(name string) bool {
	return name == "LogValuer" || name == "Attr" || strings.HasSuffix(name, "Value")
}
