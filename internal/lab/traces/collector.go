package traces

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	labnet "firezone-gateway/internal/lab/net"
)

var (
	// ErrNoSource says that the Collector's module is not at hand.
	ErrNoSource = errors.New("no source tree of the collector here")
	// ErrNoModules says that modules which the Collector is made of cannot be
	// fetched.
	ErrNoModules = errors.New("the collector's modules cannot be fetched")
)

// Build compiles the Collector, a module of its own in the source tree around
// the working directory, into dir and returns the path of the executable. The
// first time it fetches some hundred modules and takes minutes; then seconds.
func Build(ctx context.Context, dir string) (string, error) {
	module, err := output(ctx, "", "list", "-m", "-f", "{{.Dir}}", "firezone-gateway")
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoSource, err)
	}
	source := filepath.Join(module, "internal", "lab", "collector")
	if _, err := os.Stat(filepath.Join(source, "go.mod")); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoSource, err)
	}
	// Apart from the build, to tell a module that is missing from a mistake.
	if _, err := output(ctx, source, "mod", "download"); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoModules, err)
	}
	binary := filepath.Join(dir, "collector")
	if _, err := output(ctx, source, "build", "-o", binary, "."); err != nil {
		return "", fmt.Errorf("build the collector: %w", err)
	}
	return binary, nil
}

// output runs the go command and returns what it prints.
func output(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	// The main module's flags, such as -mod, are not for another module.
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOWORK=off")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, lastLines(stderr.String(), 5))
	}
	return strings.TrimSpace(stdout.String()), nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Where the Collector and who takes from it listen, in one namespace.
const (
	grpcAddress = "127.0.0.1:4317"
	httpAddress = "127.0.0.1:4318"
	sinkAddress = "127.0.0.1:4319"
)

const collectorConfig = `receivers:
  otlp:
    protocols:
      grpc:
        endpoint: ` + grpcAddress + `
      http:
        endpoint: ` + httpAddress + `
exporters:
  otlp_http:
    traces_endpoint: http://` + sinkAddress + `/v1/traces
    compression: none
    sending_queue:
      enabled: false
service:
  telemetry:
    logs:
      level: warn
    metrics:
      level: none
  pipelines:
    traces:
      receivers: [otlp]
      exporters: [otlp_http]
`

// collector is a running Collector.
type collector struct {
	process *labnet.Process
	log     *bytes.Buffer // read after the end only
	dir     string
}

// startCollector runs the Collector in a namespace and returns when it takes
// spans.
func startCollector(ctx context.Context, ns *labnet.Namespace, binary string) (*collector, error) {
	dir, err := os.MkdirTemp("", "collector-")
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config.yaml")
	c := &collector{log: new(bytes.Buffer), dir: dir}
	if err := os.WriteFile(config, []byte(collectorConfig), 0o600); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	cmd := exec.Command(binary, "--config", "file:"+config)
	var log io.Writer = c.log
	cmd.Stdout, cmd.Stderr = log, log
	if c.process, err = ns.StartProcess(cmd); err != nil {
		return nil, fmt.Errorf("collector: %w", errors.Join(err, os.RemoveAll(dir)))
	}
	if err := c.awaitListening(ctx, ns); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// readyPatience is for a machine that is busy with other tests.
const readyPatience = 30 * time.Second

func (c *collector) awaitListening(ctx context.Context, ns *labnet.Namespace) error {
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	for {
		conn, err := ns.DialContext(ctx, "tcp", grpcAddress)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-c.process.Done():
			return fmt.Errorf("collector ended: %s", lastLines(c.log.String(), 10))
		case <-ctx.Done():
			return fmt.Errorf("collector does not listen: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// flush ends the Collector, which passes everything on before.
func (c *collector) flush() error {
	if err := c.process.Stop(10 * time.Second); err != nil {
		return fmt.Errorf("collector: %w\n%s", err, lastLines(c.log.String(), 10))
	}
	return nil
}

func (c *collector) close() error {
	var err error
	select {
	case <-c.process.Done():
	default:
		err = c.flush()
	}
	return errors.Join(err, os.RemoveAll(c.dir))
}
