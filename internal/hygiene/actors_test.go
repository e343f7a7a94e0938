package hygiene

import (
	"go/ast"
	"path"
	"strings"
	"testing"
)

func TestActorsSayWhoOwnsThem(t *testing.T) {
	actorTypes := 0
	for _, f := range repository(t) {
		if f.path != "actors" {
			continue
		}
		for _, s := range f.sources {
			if s.isTest() {
				continue
			}
			actorTypes += len(receivers(s))
			report(t, undescribedActors(s))
		}
	}
	if actorTypes < 7 {
		t.Errorf("found %d actors, there are more", actorTypes)
	}
}

func TestUndescribedActorsSeesThem(t *testing.T) {
	const receive = "\nfunc (a *a) Receive(ctx actorkit.Context) {}\n"
	for _, tc := range []struct {
		name, file, text, want string
	}{
		{"a described actor", "actors/x.go", "// a owns x.\n//\n// Supervisor: gateway.\ntype a struct{}" + receive, ""},
		{"an actor without supervisor", "actors/x.go", "// a owns x.\ntype a struct{}" + receive, "a: its comment"},
		{"an actor without comment", "actors/x.go", "type a struct{}" + receive, "a: its comment"},
		{"something else", "actors/x.go", "type a struct{}\nfunc (a *a) Receive(b []byte) {}", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			expect(t, undescribedActors(parse(t, tc.file, "package actors\n\n"+tc.text)), tc.want)
		})
	}
}

// undescribedActors reports actors whose type does not say who supervises it,
// which is where the file says what survives a restart.
func undescribedActors(s *source) []string {
	var problems []string
	for _, name := range receivers(s) {
		doc := ""
		for _, decl := range s.ast.Decls {
			if gen, ok := decl.(*ast.GenDecl); ok {
				doc += docOf(gen, name)
			}
		}
		if !strings.Contains(doc, "Supervisor: ") {
			problems = append(problems, path.Base(s.path)+": actor "+name+": its comment does not say who supervises it")
		}
	}
	return problems
}

// receivers returns the types in s with the method that makes them actors.
func receivers(s *source) []string {
	var names []string
	for _, decl := range s.ast.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Recv == nil || fn.Name.Name != "Receive" || len(fn.Type.Params.List) != 1 {
			continue
		}
		param, ok := fn.Type.Params.List[0].Type.(*ast.SelectorExpr)
		if !ok || param.Sel.Name != "Context" {
			continue
		}
		if star, ok := fn.Recv.List[0].Type.(*ast.StarExpr); ok {
			if id, ok := star.X.(*ast.Ident); ok {
				names = append(names, id.Name)
			}
		}
	}
	return names
}

func docOf(gen *ast.GenDecl, name string) string {
	for _, spec := range gen.Specs {
		if typ, ok := spec.(*ast.TypeSpec); ok && typ.Name.Name == name {
			return gen.Doc.Text() + typ.Doc.Text()
		}
	}
	return ""
}
