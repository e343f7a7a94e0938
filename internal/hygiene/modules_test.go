package hygiene

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// lintModule is the linter that the tools module pins.
const lintModule = "github.com/golangci/golangci-lint/v2"

// release matches versions that name a release, not a commit.
var release = regexp.MustCompile(`^v\d+\.\d+\.\d+$`)

// modFile is what go mod edit -json prints of a go.mod file.
type modFile struct {
	Module  struct{ Path string }
	Require []struct{ Path, Version string }
	Replace []struct{ Old struct{ Path string } }
	Exclude []struct{ Path string }
	Tool    []struct{ Path string }
}

func TestTheProductModuleStandsAlone(t *testing.T) {
	report(t, productModule(readModFile(t, root)))
}

func TestTheToolsModulePinsTheLinter(t *testing.T) {
	report(t, toolsModule(readModFile(t, filepath.Join(root, "tools"))))
}

func TestModuleChecksSeeEachFault(t *testing.T) {
	for _, tc := range []struct {
		name, text, want string
		check            func(modFile) []string
	}{
		{"a product", "module firezone-gateway", "", productModule},
		{"a replaced dependency", "module firezone-gateway\nreplace a.b/c => ../c", "replaces a.b/c", productModule},
		{"an excluded version", "module firezone-gateway\nexclude a.b/c v1.0.0", "excludes a.b/c", productModule},
		{"a tool of the product", "module firezone-gateway\ntool a.b/c", "tool a.b/c", productModule},
		{"the linter in the product", "module firezone-gateway\nrequire " + lintModule + " v2.0.0", "requires " + lintModule, productModule},
		{"another module", "module x", "named x", productModule},
		{"tools", "module firezone-gateway/tools\ntool " + lintModule + "/cmd/golangci-lint\nrequire " + lintModule + " v2.1.0", "", toolsModule},
		{"tools with a replacement", "module firezone-gateway/tools\nreplace a.b/c => ../c\ntool " + lintModule + "/cmd/golangci-lint\nrequire " + lintModule + " v2.1.0", "replaces", toolsModule},
		{"tools without the linter", "module firezone-gateway/tools\nrequire " + lintModule + " v2.1.0", "no tool", toolsModule},
		{"a linter between releases", "module firezone-gateway/tools\ntool " + lintModule + "/cmd/golangci-lint\nrequire " + lintModule + " v2.1.1-0.20250101000000-0123456789ab", "no release", toolsModule},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(tc.text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			expect(t, tc.check(readModFile(t, dir)), tc.want)
		})
	}
}

func productModule(m modFile) []string {
	problems := substitutions(m)
	if m.Module.Path != modulePath {
		problems = append(problems, "go.mod: the module is named "+m.Module.Path)
	}
	for _, tool := range m.Tool {
		problems = append(problems, "go.mod names the tool "+tool.Path+": tools have a module of their own")
	}
	for _, r := range m.Require {
		if r.Path == lintModule {
			problems = append(problems, "go.mod requires "+r.Path+": tools have a module of their own")
		}
	}
	return problems
}

func toolsModule(m modFile) []string {
	problems := substitutions(m)
	version := ""
	for _, r := range m.Require {
		if r.Path == lintModule {
			version = r.Version
		}
	}
	if !release.MatchString(version) {
		problems = append(problems, "tools/go.mod: the linter's version "+version+" is no release")
	}
	for _, tool := range m.Tool {
		if strings.HasPrefix(tool.Path, lintModule) {
			return problems
		}
	}
	return append(problems, "tools/go.mod: the linter is no tool of it")
}

// substitutions reports what makes a build depend on more than the versions in
// the module file.
func substitutions(m modFile) []string {
	var problems []string
	for _, r := range m.Replace {
		problems = append(problems, "module "+m.Module.Path+" replaces "+r.Old.Path)
	}
	for _, e := range m.Exclude {
		problems = append(problems, "module "+m.Module.Path+" excludes "+e.Path)
	}
	return problems
}

func readModFile(t *testing.T, dir string) modFile {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go mod edit: %v\n%s", err, out)
	}
	var m modFile
	if err := json.Unmarshal(out, &m); err != nil {
		t.Fatal(err)
	}
	return m
}
