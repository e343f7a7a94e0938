package hygiene

import (
	"go/ast"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// secretName matches names of things that must not be printed. Types that hold
// them redact their own textual forms; this is about the bare values.
var secretName = regexp.MustCompile(`(?i)(token|password|passwd|pwd|secret|presharedkey|psk|privatekey|credential)$`)

// printers are the packages whose functions make text of their arguments.
var printers = []string{"fmt", "errors", "log", "log/slog"}

// logMethods are the methods of a logger.
var logMethods = []string{
	"Debug", "Info", "Warn", "Error", "Log", "LogAttrs", "With",
	"DebugContext", "InfoContext", "WarnContext", "ErrorContext",
}

func TestNoSecretIsPrinted(t *testing.T) {
	for _, f := range repository(t) {
		if under(f.path, "internal/lab") || f.path == "cmd/firezone-lab" {
			continue // the lab's secrets open nothing
		}
		for _, s := range f.sources {
			if !s.isTest() {
				report(t, printedSecrets(s))
			}
		}
	}
}

func TestPrintedSecretsSeesThem(t *testing.T) {
	for _, tc := range []struct {
		name, text, want string
	}{
		{"a number", `fmt.Errorf("port %d", port)`, ""},
		{"a token in an error", `fmt.Errorf("token %q", token)`, "token"},
		{"a field", `fmt.Sprintf("%s", cfg.Token)`, "Token"},
		{"a logged password", `log.Info("relay", "password", relay.Password)`, "Password"},
		{"a logged password in a derived logger", `c.Logger().With("p", relayPassword)`, "relayPassword"},
		{"as an attribute", `slog.String("k", string(c.PresharedKey))`, "PresharedKey"},
		{"bytes of a key", `fmt.Println(c.PrivateKey[:])`, "PrivateKey"},
		{"in a sum", `errors.New("bad token " + token)`, "token"},
		{"encoded", `slog.Any("k", hex.EncodeToString(psk[:]))`, "psk"},
		{"its length", `fmt.Errorf("token of %d bytes", len(token))`, ""},
		{"an error about it", `fmt.Errorf("start: %w", errNoToken)`, ""},
		{"a redacted form", `log.Info("login", "url", login.Redacted())`, ""},
		{"a word", `log.Info("token refused")`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text := "package x\n\nimport (\"errors\"; \"fmt\"; \"log/slog\")\n\nfunc f() { " + tc.text + " }\n"
			expect(t, printedSecrets(parse(t, "actors/x.go", text)), tc.want)
		})
	}
}

// printedSecrets reports calls that make text of something with a secret's name.
func printedSecrets(s *source) []string {
	var problems []string
	ast.Inspect(s.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || !s.prints(call) {
			return true
		}
		for _, arg := range call.Args {
			for _, name := range namesIn(arg) {
				if secretName.MatchString(name) && !strings.HasPrefix(strings.ToLower(name), "err") {
					problems = append(problems, s.at(call)+" prints "+name)
				}
			}
		}
		return true
	})
	return problems
}

func (s *source) prints(call *ast.CallExpr) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	if imported, _ := s.selected(sel); imported != "" {
		return slices.Contains(printers, imported)
	}
	return slices.Contains(logMethods, sel.Sel.Name)
}

// namesIn returns the names whose values end up in the text of e. What a
// function makes of its arguments is its own business, except where it only
// changes the notation.
func namesIn(e ast.Expr) []string {
	switch e := e.(type) {
	case *ast.Ident:
		return []string{e.Name}
	case *ast.SelectorExpr:
		return []string{e.Sel.Name}
	case *ast.ParenExpr:
		return namesIn(e.X)
	case *ast.StarExpr:
		return namesIn(e.X)
	case *ast.UnaryExpr:
		return namesIn(e.X)
	case *ast.SliceExpr:
		return namesIn(e.X)
	case *ast.IndexExpr:
		return namesIn(e.X)
	case *ast.BinaryExpr:
		return append(namesIn(e.X), namesIn(e.Y)...)
	case *ast.CallExpr:
		if len(e.Args) == 1 && changesNotation(e.Fun) {
			return namesIn(e.Args[0])
		}
	}
	return nil
}

func changesNotation(fun ast.Expr) bool {
	switch fun := fun.(type) {
	case *ast.Ident:
		return fun.Name == "string"
	case *ast.ArrayType:
		return true
	case *ast.SelectorExpr:
		return fun.Sel.Name == "EncodeToString"
	}
	return false
}
