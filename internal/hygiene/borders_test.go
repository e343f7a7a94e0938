package hygiene

import (
	"fmt"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// layer is a kind of package. Imports point downwards.
type layer string

const (
	pure     layer = "pure"    // no clock, socket, goroutine, actor or log
	edge     layer = "edge"    // moves bytes, takes no decision, knows no actor
	ops      layer = "ops"     // what operators look at
	kit      layer = "kit"     // the actor library behind our own face
	message  layer = "message" // values that actors send each other
	actor    layer = "actor"
	daemon   layer = "daemon"
	lab      layer = "lab"      // a deployment on one machine, not part of the product
	labPart  layer = "lab part" // an independent counterpart of the product
	labTool  layer = "lab tool"
	checking layer = "checking"
)

// layers says what each package is. A new package has to be named here.
var layers = map[string]layer{
	"cmd/firezone-gateway":       daemon,
	"cmd/firezone-lab":           labTool,
	"actors":                     actor,
	"messages":                   message,
	"internal/actorkit":          kit,
	"internal/admin":             ops,
	"internal/telemetry":         ops,
	"internal/dns":               edge,
	"internal/host":              edge,
	"internal/portal/ws":         edge,
	"internal/transport":         edge,
	"internal/transport/ice":     edge,
	"internal/tun":               edge,
	"internal/tunnel":            edge,
	"internal/drop":              pure,
	"internal/nat":               pure,
	"internal/packet":            pure,
	"internal/packet/packettest": pure,
	"internal/policy":            pure,
	"internal/portal":            pure,
	"internal/transport/stun":    pure,
	"internal/transport/turn":    pure,
	"internal/lab/bench":         lab,
	"internal/lab/gateway":       lab,
	"internal/lab/tour":          lab,
	"internal/lab/natmatrix":     lab,
	"internal/lab/scale":         lab,
	"internal/lab/chaos":         lab,
	"internal/lab/traces":        lab,
	"internal/lab/collector":     lab, // a module of its own
	"internal/lab/labtest":       lab,
	"internal/lab/net":           labPart,
	"internal/lab/natbox":        labPart,
	"internal/lab/client":        labPart,
	"internal/lab/portal":        labPart,
	"internal/lab/relay":         labPart,
	"internal/lab/resource":      labPart,
	"internal/hygiene":           checking,
	"internal/hammer":            checking,
}

// planned packages have their layer but need not exist.
var planned = []string{}

// mayImport lists, for each layer, the layers that its packages may import.
var mayImport = map[layer][]layer{
	pure:    {pure},
	edge:    {pure, edge},
	ops:     {pure, ops},
	kit:     {ops},
	message: {pure, edge, kit},
	actor:   {pure, edge, ops, kit, message},
	daemon:  {pure, edge, ops, kit, message, actor},
	// The lab meets the product on the wire only: what it shared with the
	// product, it could not test.
	labPart: {labPart},
	lab:     {lab, labPart},
	labTool: {lab, labPart},
}

// messageValues are the packages whose value types messages carry.
var messageValues = []string{
	"internal/actorkit", "internal/drop", "internal/packet", "internal/policy", "internal/portal",
	"internal/transport", "internal/transport/ice", "internal/tunnel",
}

const (
	actorLibrary = "github.com/asynkron/protoactor-go"
	actorKit     = "internal/actorkit"
)

func TestEveryPackageHasALayer(t *testing.T) {
	var existing []string
	for _, f := range repository(t) {
		existing = append(existing, f.path)
	}
	report(t, unlayered(existing, layers, planned))
}

func TestImportsPointDownwards(t *testing.T) {
	for _, f := range repository(t) {
		for _, s := range f.sources {
			report(t, wrongImports(s))
		}
	}
}

func TestTheLabIsNotPartOfTheProduct(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "./cmd/firezone-gateway")
	cmd.Dir = root
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	report(t, foreignToProduct(strings.Fields(string(out))))
}

func TestUnlayeredSeesMissingAndSurplusPackages(t *testing.T) {
	known := map[string]layer{"internal/a": pure, "internal/b": edge, "internal/later": pure}
	for _, tc := range []struct {
		name     string
		existing []string
		want     string
	}{
		{"all packages are named", []string{"internal/a", "internal/b"}, ""},
		{"a planned package may exist", []string{"internal/a", "internal/b", "internal/later"}, ""},
		{"a new package is named nowhere", []string{"internal/a", "internal/b", "internal/c"}, "internal/c"},
		{"a package was removed", []string{"internal/a"}, "internal/b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			expect(t, unlayered(tc.existing, known, []string{"internal/later"}), tc.want)
		})
	}
}

func TestWrongImportsSeesEachBorder(t *testing.T) {
	for _, tc := range []struct {
		name, file, imports, want string
	}{
		{"a pure package may import a pure one", "internal/policy/a.go", "firezone-gateway/internal/packet", ""},
		{"a pure package may not import an edge", "internal/policy/a.go", "firezone-gateway/internal/tun", "internal/tun"},
		{"a pure package may not import actors' kit", "internal/policy/a.go", "firezone-gateway/internal/actorkit", "internal/actorkit"},
		{"portal is pure although its websocket is not", "internal/portal/a.go", "firezone-gateway/internal/portal/ws", "internal/portal/ws"},
		{"the websocket may import portal", "internal/portal/ws/a.go", "firezone-gateway/internal/portal", ""},
		{"an edge may not import the kit", "internal/tunnel/a.go", "firezone-gateway/internal/actorkit", "internal/actorkit"},
		{"an edge may not import messages", "internal/tunnel/a.go", "firezone-gateway/messages", "messages"},
		{"nothing internal imports actors", "internal/admin/a.go", "firezone-gateway/actors", "actors"},
		{"nothing internal imports a command", "internal/lab/tour/a.go", "firezone-gateway/cmd/firezone-lab", "cmd/firezone-lab"},
		{"actors may import an edge", "actors/a.go", "firezone-gateway/internal/tunnel", ""},
		{"actors may not import the command", "actors/a.go", "firezone-gateway/cmd/firezone-gateway", "cmd/firezone-gateway"},
		{"the daemon may not import the lab", "cmd/firezone-gateway/a.go", "firezone-gateway/internal/lab/net", "internal/lab/net"},
		{"the lab's portal does not share the product's", "internal/lab/portal/a.go", "firezone-gateway/internal/portal", "internal/portal"},
		{"the lab's client does not share the transport", "internal/lab/client/a.go", "firezone-gateway/internal/transport/stun", "internal/transport/stun"},
		{"the lab's parts know each other", "internal/lab/client/a.go", "firezone-gateway/internal/lab/net", ""},
		{"only the kit imports the actor library", "actors/a.go", actorLibrary + "/actor", actorLibrary},
		{"not even in a test", "actors/a_test.go", actorLibrary + "/actor", actorLibrary},
		{"the kit imports the actor library", "internal/actorkit/a.go", actorLibrary + "/actor", ""},
		{"the kit may not use its persistence", "internal/actorkit/a.go", actorLibrary + "/persistence", "persistence"},
		{"messages carry value types", "messages/a.go", "firezone-gateway/internal/tunnel", ""},
		{"messages may not import the device", "messages/a.go", "firezone-gateway/internal/tun", "internal/tun"},
		{"a test may import what its package may not", "internal/tunnel/a_test.go", "firezone-gateway/internal/lab/net", ""},
		{"a test may not import upwards either", "internal/tunnel/a_test.go", "firezone-gateway/actors", "actors"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := parse(t, tc.file, fmt.Sprintf("package x\n\nimport _ %q\n", tc.imports))
			expect(t, wrongImports(s), tc.want)
		})
	}
}

func TestForeignToProductSeesTheLab(t *testing.T) {
	product := []string{"net", "firezone-gateway/actors", "firezone-gateway/internal/tunnel"}
	expect(t, foreignToProduct(product), "")
	expect(t, foreignToProduct(append(product, "firezone-gateway/internal/lab/net")), "internal/lab/net")
	expect(t, foreignToProduct(append(product, "golang.zx2c4.com/wireguard/device")), "golang.zx2c4.com/wireguard")
	expect(t, foreignToProduct([]string{"net"}), "actors")
}

// unlayered reports packages without a layer, and layers without a package.
func unlayered(existing []string, known map[string]layer, planned []string) []string {
	var problems []string
	for _, p := range existing {
		if _, ok := known[p]; !ok {
			problems = append(problems, p+" has no layer: say what it is in the table of internal/hygiene")
		}
	}
	for _, p := range slices.Sorted(maps.Keys(known)) {
		if !slices.Contains(existing, p) && !slices.Contains(planned, p) {
			problems = append(problems, p+" has a layer and does not exist")
		}
	}
	return problems
}

// wrongImports reports the imports of s that cross a border. Tests are free to
// use helpers from anywhere below the actors, but not the actor library.
func wrongImports(s *source) []string {
	var problems []string
	dir := path.Dir(s.path)
	from := layers[dir]
	wrong := func(imported, why string) {
		problems = append(problems, fmt.Sprintf("%s imports %s: %s", s.path, imported, why))
	}
	for _, imported := range s.imports() {
		if under(imported, actorLibrary) {
			switch {
			case dir != actorKit:
				wrong(imported, "the actor library is used through "+actorKit+" only")
			case imported != actorLibrary+"/actor":
				wrong(imported, "of the actor library only its actor package is used")
			}
			continue
		}
		p, ours := inModule(imported)
		if !ours || from == checking {
			continue
		}
		switch {
		case under(dir, "internal") && (under(p, "actors") || under(p, "messages") || under(p, "cmd")):
			wrong(imported, "imports point downwards")
		case s.isTest():
		case !slices.Contains(mayImport[from], layers[p]):
			wrong(imported, fmt.Sprintf("the layer %q may not import the layer %q", from, layers[p]))
		case from == message && !slices.Contains(messageValues, p):
			wrong(imported, "messages carry values of a few packages only")
		}
	}
	return problems
}

// foreignToProduct reports packages that have no business in the gateway's
// binary. The upstream WireGuard engine is the lab client's.
func foreignToProduct(deps []string) []string {
	var problems []string
	for _, d := range deps {
		if p, ours := inModule(d); (ours && (under(p, "internal/lab") || under(p, "internal/hygiene") || strings.HasSuffix(p, "test"))) ||
			under(d, "golang.zx2c4.com/wireguard") {
			problems = append(problems, "the gateway is built with "+d)
		}
	}
	if !slices.Contains(deps, modulePath+"/actors") {
		problems = append(problems, "the gateway is built without "+modulePath+"/actors: these are not its dependencies")
	}
	return problems
}
