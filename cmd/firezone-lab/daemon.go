package main

import (
	"context"

	"firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
)

// daemonFlags choose the gateway that is put into the lab.
type daemonFlags struct {
	GatewayBin string `name:"gateway-bin" placeholder:"PATH" help:"Gateway executable to use. Default: built by go build from the source tree around the working directory; GOFLAGS holds."`
	TUNDriver  string `name:"tun-driver" enum:"auto,water," default:"" help:"How the gateway moves packets through its TUN device: auto or water. Default: the gateway's own."`
	LogDir     string `name:"log-dir" placeholder:"DIR" help:"Keep the logs of gateway, portal and clients here."`
}

var theGateway = executable{
	flag: "--gateway-bin", what: "the gateway", name: "firezone-gateway", variable: "FIREZONE_LAB_BUILT",
	build:    func(ctx context.Context, dir string) (string, error) { return gateway.Build(ctx, dir) },
	noSource: gateway.ErrNoSource,
}

// prepare returns the path of the gateway's executable and makes sure that this
// process may build networks, in a new process if need be. The function returned
// removes what was built.
func (f daemonFlags) prepare(s *session) (binary string, cleanup func(), err error) {
	if binary, cleanup, err = theGateway.find(s, f.GatewayBin); err != nil {
		return "", cleanup, err
	}
	if err := labnet.EnsureIsolated(); err != nil {
		return "", cleanup, err
	}
	return binary, cleanup, labnet.CheckTUN()
}
