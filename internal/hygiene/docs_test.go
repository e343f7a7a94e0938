package hygiene

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"firezone-gateway/internal/drop"
)

// firstCommands are what README promises to work on a fresh machine, in order.
var firstCommands = []string{"go run ./cmd/firezone-lab", "go test ./..."}

// changeKinds are the sections of one version in the changelog, in order.
var changeKinds = []string{"Breaking", "Security", "Added", "Changed", "Fixed"}

var (
	fenced   = regexp.MustCompile("(?ms)^```[a-z]*\n(.*?)^```$")
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	ownPath  = regexp.MustCompile(`\./((?:cmd|internal|actors|messages|docs|tools)[\w/.-]*)`)
	quoted   = regexp.MustCompile("(?m)^\\*\\*`([^`]+)`")
	variable = regexp.MustCompile(`\bFIREZONE_[A-Z_]+\b`)
)

func TestReadmeBeginsWithTheTwoCommands(t *testing.T) {
	report(t, openingCommands(string(contents(t, "README.md"))))
}

func TestCIRunsTheCommandsOfReadme(t *testing.T) {
	script := string(contents(t, ".ci/run"))
	for _, command := range firstCommands {
		if !strings.Contains(script, command) {
			t.Errorf(".ci/run does not run %q", command)
		}
	}
}

func TestDocumentsNameWhatExists(t *testing.T) {
	for _, name := range documents(t) {
		report(t, deadReferences(name, string(contents(t, name)), exists))
	}
}

func TestChangelogIsInOrder(t *testing.T) {
	report(t, changelogFaults(string(contents(t, "CHANGELOG.md"))))
}

func TestOperationDescribesEveryFlag(t *testing.T) {
	flags := flagsOf(parse(t, "flags.go", string(contents(t, "cmd/firezone-gateway/flags.go"))))
	if len(flags) < 15 {
		t.Fatalf("found %d flags of the gateway, there are more", len(flags))
	}
	report(t, undocumented(flags, string(contents(t, "docs/operation.md"))))
	for _, name := range documents(t) {
		report(t, inventedVariables(name, string(contents(t, name)), flags))
	}
}

func TestOperationDescribesEveryDropReason(t *testing.T) {
	text := string(contents(t, "docs/operation.md"))
	for r := drop.None + 1; r < drop.Count; r++ {
		if !strings.Contains(text, "| `"+r.String()+"` |") {
			t.Errorf("docs/operation.md has no row for the drop reason %s", r)
		}
	}
}

func TestTroubleshootingQuotesRealMessages(t *testing.T) {
	var literals strings.Builder
	for _, f := range repository(t) {
		if !under(f.path, "internal/lab") && f.path != "internal/hygiene" {
			for _, s := range f.sources {
				literals.WriteString(s.literals())
			}
		}
	}
	messages := quotedMessages(string(contents(t, "docs/operation.md")))
	if len(messages) < 8 {
		t.Fatalf("docs/operation.md quotes %q only", messages)
	}
	report(t, unheardMessages(messages, literals.String()))
}

func TestUnheardMessagesSeesThem(t *testing.T) {
	const said = "no token: set it\nportal refused the login on route %v\ntoken invalid\n"
	for _, tc := range []struct {
		name, text, want string
	}{
		{"a message", "**`no token: set it`** Do.", ""},
		{"its beginning", "**`no token: set …`** Do.", ""},
		{"two parts of one", "**`portal refused the login …: token invalid`** Do.", ""},
		{"another wording", "**`no such token`** Do.", "no such token"},
		{"another second part", "**`portal refused the login …: token expired`** Do.", "token expired"},
	} {
		t.Run(tc.name, func(t *testing.T) { expect(t, unheardMessages(quotedMessages(tc.text), said), tc.want) })
	}
}

func TestArchitectureNamesEveryPackage(t *testing.T) {
	text := string(contents(t, "docs/architecture.md"))
	for _, f := range repository(t) {
		if !strings.Contains(text, f.path) {
			t.Errorf("docs/architecture.md does not say what %s is", f.path)
		}
	}
}

func TestOpeningCommandsSeesTheirOrder(t *testing.T) {
	const run, test = "```sh\ngo run ./cmd/firezone-lab   # the job\n```\n", "```sh\ngo test ./...\n```\n"
	for _, tc := range []struct {
		name, text, want string
	}{
		{"both", "# x\n\n" + run + "and\n\n" + test, ""},
		{"both in one block", "```sh\ngo run ./cmd/firezone-lab\ngo test ./...\n```\n", ""},
		{"in the other order", test + run, "go run ./cmd/firezone-lab"},
		{"something before", "```sh\nmake install\n```\n" + run + test, "make install"},
		{"none", "# x\n", "no command"},
	} {
		t.Run(tc.name, func(t *testing.T) { expect(t, openingCommands(tc.text), tc.want) })
	}
}

func TestDeadReferencesSeesThem(t *testing.T) {
	there := func(name string) bool { return name == "docs/a.md" || name == "cmd/x" }
	for _, tc := range []struct {
		name, text, want string
	}{
		{"a link to a file", "[a](a.md)", ""},
		{"a link to a place in it", "[a](a.md#there)", ""},
		{"a link into the same file", "[a](#there)", ""},
		{"a link to the web", "[a](https://example.org/x)", ""},
		{"a dead link", "[a](b.md)", "docs/b.md"},
		{"a command", "`go run ./cmd/x --json`", ""},
		{"a command that is gone", "`go run ./cmd/y`", "cmd/y"},
		{"all packages", "`go test ./internal/...`", "internal"},
	} {
		t.Run(tc.name, func(t *testing.T) { expect(t, deadReferences("docs/z.md", tc.text, there), tc.want) })
	}
}

func TestChangelogFaultsSeesThem(t *testing.T) {
	for _, tc := range []struct {
		name, text, want string
	}{
		{"in order", "# Changelog\n\n## Unreleased\n\n### Added\n\n- x\n\n### Fixed\n\n- y\n\n## 1.0.0 (2027-01-01)\n\n### Security\n\n- z\n", ""},
		{"no unreleased section", "# Changelog\n\n## 1.0.0\n\n### Added\n\n- x\n", "Unreleased"},
		{"another kind of change", "# Changelog\n\n## Unreleased\n\n### Improved\n\n- x\n", "Improved"},
		{"kinds out of order", "# Changelog\n\n## Unreleased\n\n### Fixed\n\n- x\n\n### Added\n\n- y\n", "Added"},
		{"an empty section", "# Changelog\n\n## Unreleased\n\n### Added\n\n### Fixed\n\n- y\n", "empty"},
	} {
		t.Run(tc.name, func(t *testing.T) { expect(t, changelogFaults(tc.text), tc.want) })
	}
}

func TestFlagChecksSeeWhatIsMissing(t *testing.T) {
	text := "package main\n\ntype flags struct {\n" +
		"A string `name:\"api-url\" short:\"u\" env:\"FIREZONE_API_URL\"`\n" +
		"B int `env:\"FIREZONE_B\"`\n" +
		"C bool `name:\"no-check\"`\n}\n"
	flags := flagsOf(parse(t, "flags.go", text))
	expect(t, undocumented(flags, "`--api-url` `FIREZONE_API_URL` `FIREZONE_B` `--no-check`"), "")
	expect(t, undocumented(flags, "`--api-url` `FIREZONE_API_URL` `FIREZONE_B`"), "--no-check")
	expect(t, undocumented(flags, "`--api-url` `FIREZONE_API_URL` `--no-check`"), "FIREZONE_B")
	expect(t, inventedVariables("x.md", "FIREZONE_B=1", flags), "")
	expect(t, inventedVariables("x.md", "FIREZONE_BB=1", flags), "FIREZONE_BB")
}

// openingCommands reports if the first commands of a text are not the promised
// ones. Comments behind them do not count.
func openingCommands(text string) []string {
	var commands []string
	for _, block := range fenced.FindAllStringSubmatch(text, -1) {
		for line := range strings.Lines(block[1]) {
			command, _, _ := strings.Cut(line, "#")
			if command = strings.TrimSpace(command); command != "" {
				commands = append(commands, command)
			}
		}
	}
	for i, want := range firstCommands {
		switch {
		case i >= len(commands):
			return []string{fmt.Sprintf("README.md has no command number %d, want %q", i+1, want)}
		case commands[i] != want:
			return []string{fmt.Sprintf("README.md begins with the command %q, want %q", commands[i], want)}
		}
	}
	return nil
}

// deadReferences reports links and paths of this repository that lead nowhere.
func deadReferences(name, text string, exists func(string) bool) []string {
	var problems []string
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		target, _, _ := strings.Cut(m[1], "#")
		if target == "" || strings.Contains(target, "://") {
			continue
		}
		if target = path.Join(path.Dir(name), target); !exists(target) {
			problems = append(problems, name+" links to "+target+", which is not there")
		}
	}
	for _, m := range ownPath.FindAllStringSubmatch(text, -1) {
		target := strings.TrimRight(strings.TrimSuffix(m[1], "..."), "/.")
		if !exists(target) {
			problems = append(problems, name+" names "+target+", which is not there")
		}
	}
	return problems
}

func changelogFaults(text string) []string {
	var problems []string
	var versions []string
	kind, entries := "", 0
	closeKind := func() {
		if kind != "" && entries == 0 {
			problems = append(problems, "CHANGELOG.md: section "+kind+" is empty")
		}
		entries = 0
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "### "); ok {
			closeKind()
			at, before := slices.Index(changeKinds, name), slices.Index(changeKinds, kind)
			if at < 0 || at <= before {
				problems = append(problems, fmt.Sprintf("CHANGELOG.md: section %s, want some of %v in this order", name, changeKinds))
			}
			kind = name
		} else if name, ok := strings.CutPrefix(line, "## "); ok {
			closeKind()
			versions, kind = append(versions, name), ""
		} else if strings.HasPrefix(line, "- ") {
			entries++
		}
	}
	closeKind()
	if len(versions) == 0 || versions[0] != "Unreleased" {
		problems = append(problems, "CHANGELOG.md: the first version is not Unreleased")
	}
	return problems
}

// commandFlag is one field of the flag struct. Either name may be empty.
type commandFlag struct{ flag, env string }

// flagsOf reads the struct tags of the type named flags.
func flagsOf(s *source) []commandFlag {
	var flags []commandFlag
	ast.Inspect(s.ast, func(n ast.Node) bool {
		typ, ok := n.(*ast.TypeSpec)
		if !ok || typ.Name.Name != "flags" {
			return true
		}
		for _, field := range typ.Type.(*ast.StructType).Fields.List {
			raw, err := strconv.Unquote(field.Tag.Value)
			if err != nil {
				continue
			}
			tag := reflect.StructTag(raw)
			flags = append(flags, commandFlag{flag: tag.Get("name"), env: tag.Get("env")})
		}
		return false
	})
	return flags
}

func undocumented(flags []commandFlag, text string) []string {
	var problems []string
	for _, f := range flags {
		if f.flag != "" && !strings.Contains(text, "`--"+f.flag+"`") {
			problems = append(problems, "docs/operation.md does not describe --"+f.flag)
		}
		if f.env != "" && !strings.Contains(text, "`"+f.env+"`") {
			problems = append(problems, "docs/operation.md does not describe "+f.env)
		}
	}
	return problems
}

// inventedVariables reports environment variables that the gateway does not know.
func inventedVariables(name, text string, flags []commandFlag) []string {
	known := map[string]bool{}
	for _, f := range flags {
		known[f.env] = true
	}
	unknown := map[string]bool{}
	for _, v := range variable.FindAllString(text, -1) {
		if !known[v] {
			unknown[v] = true
		}
	}
	var problems []string
	for _, v := range slices.Sorted(maps.Keys(unknown)) {
		problems = append(problems, name+" names "+v+", which the gateway does not read")
	}
	return problems
}

// quotedMessages returns the messages of the gateway that head a paragraph.
func quotedMessages(text string) []string {
	var out []string
	for _, m := range quoted.FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

// unheardMessages reports messages whose parts, between ellipses, are in none of
// the texts that the gateway can say.
func unheardMessages(messages []string, said string) []string {
	var problems []string
	for _, m := range messages {
		for part := range strings.SplitSeq(m, "…") {
			if part = strings.Trim(part, ": "); !strings.Contains(said, part) {
				problems = append(problems, fmt.Sprintf("docs/operation.md quotes %q, and nothing says %q", m, part))
			}
		}
	}
	return problems
}

// literals returns the string literals of a product source, a line each.
func (s *source) literals() string {
	if s.isTest() {
		return ""
	}
	var b strings.Builder
	ast.Inspect(s.ast, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if text, err := strconv.Unquote(lit.Value); err == nil {
				b.WriteString(text + "\n")
			}
		}
		return true
	})
	return b.String()
}

func documents(t *testing.T) []string {
	t.Helper()
	names := slices.DeleteFunc(textFiles(t), func(name string) bool { return path.Ext(name) != ".md" })
	if len(names) < 4 {
		t.Fatalf("found the documents %v, there are more", names)
	}
	return names
}

func exists(name string) bool {
	_, err := os.Stat(filepath.Join(root, filepath.FromSlash(name)))
	return err == nil
}
