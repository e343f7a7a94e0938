package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
)

// daemonFlags choose the gateway that is put into the lab.
type daemonFlags struct {
	GatewayBin string `name:"gateway-bin" placeholder:"PATH" help:"Gateway executable to use. Default: built by go build from the source tree around the working directory; GOFLAGS holds."`
	TUNDriver  string `name:"tun-driver" enum:"auto,water," default:"" help:"How the gateway moves packets through its TUN device: auto or water. Default: the gateway's own."`
	LogDir     string `name:"log-dir" placeholder:"DIR" help:"Keep the logs of gateway, portal and clients here."`
}

// builtVariable hands the directory with the gateway that was built on to the
// process in the user namespace, which has no network to fetch modules from.
const builtVariable = "FIREZONE_LAB_BUILT"

// prepare returns the path of the gateway's executable and makes sure that this
// process may build networks, in a new process if need be. The function returned
// removes what was built.
func (f daemonFlags) prepare(s *session) (binary string, cleanup func(), err error) {
	cleanup = func() {}
	switch built := os.Getenv(builtVariable); {
	case f.GatewayBin != "":
		if binary, err = exec.LookPath(f.GatewayBin); err == nil {
			binary, err = filepath.Abs(binary)
		}
		if err != nil {
			return "", cleanup, fmt.Errorf("--gateway-bin: %w", err)
		}
	case built != "":
		binary, cleanup = filepath.Join(built, "firezone-gateway"), func() { os.RemoveAll(built) }
	default:
		if binary, cleanup, err = build(s); err != nil {
			return "", cleanup, err
		}
	}
	if err := labnet.EnsureIsolated(); err != nil {
		return "", cleanup, err
	}
	return binary, cleanup, labnet.CheckTUN()
}

func build(s *session) (string, func(), error) {
	dir, err := os.MkdirTemp("", "firezone-lab-")
	if err != nil {
		return "", func() {}, err
	}
	cleanup := func() { os.RemoveAll(dir) }
	begin := time.Now()
	s.progress.Begin("building the gateway")
	binary, err := gateway.Build(s.ctx, dir)
	if err != nil {
		s.progress.End("✗ building the gateway")
		if errors.Is(err, gateway.ErrNoSource) {
			err = fmt.Errorf("%w: run this in the source tree, or name an executable with --gateway-bin", err)
		}
		return "", cleanup, err
	}
	s.progress.End(fmt.Sprintf("✓ built the gateway (%.1f s)", time.Since(begin).Seconds()))
	return binary, cleanup, os.Setenv(builtVariable, dir)
}
