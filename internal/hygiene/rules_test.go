package hygiene

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// proof names a test that fails without what a rule of the specification asks
// for. inside is a string in that test, most often the name of a subtest; it may
// be empty.
type proof struct{ dir, test, inside string }

// rules maps the number of a rule to its proofs.
type rules map[int][]proof

// check reports rules from 1 to last without proof, and proofs that do not exist.
// name makes the name of a rule of its number.
func (r rules) check(t *testing.T, name string, last int) {
	t.Helper()
	for n := range r {
		if n < 1 || n > last {
			t.Errorf("there is no "+name, n)
		}
	}
	sources := map[string]map[string]*ast.FuncDecl{}
	for n := 1; n <= last; n++ {
		t.Run(fmt.Sprintf(name, n), func(t *testing.T) {
			if len(r[n]) == 0 {
				t.Error("no test")
			}
			for _, p := range r[n] {
				if sources[p.dir] == nil {
					sources[p.dir] = testsOf(t, p.dir)
				}
				switch f := sources[p.dir][p.test]; {
				case f == nil:
					t.Errorf("%s has no %s", p.dir, p.test)
				case p.inside != "" && !slices.ContainsFunc(literals(f), func(l string) bool { return strings.Contains(l, p.inside) }):
					t.Errorf("%s in %s has no %q", p.test, p.dir, p.inside)
				}
			}
		})
	}
}

// testsOf returns the tests and fuzz targets of a folder.
func testsOf(t *testing.T, dir string) map[string]*ast.FuncDecl {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("..", "..", filepath.FromSlash(dir), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*ast.FuncDecl{}
	for _, name := range names {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if ok && fn.Recv == nil && (strings.HasPrefix(fn.Name.Name, "Test") || strings.HasPrefix(fn.Name.Name, "Fuzz")) {
				found[fn.Name.Name] = fn
			}
		}
	}
	return found
}

// literals returns the strings in a function.
func literals(f *ast.FuncDecl) (all []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			if s, err := strconv.Unquote(l.Value); err == nil {
				all = append(all, s)
			}
		}
		return true
	})
	return all
}
