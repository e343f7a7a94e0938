package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"firezone-gateway/internal/lab/portal"
)

type portalCommand struct {
	Listen       string        `name:"listen" default:"127.0.0.1:8081" help:"Address for gateways, clients and relays. Not port 80: peers would dial 443."`
	Control      string        `name:"control" default:"127.0.0.1:8082" help:"Address of the control interface. It has no authentication."`
	GatewayToken string        `name:"gateway-token" env:"LAB_GATEWAY_TOKEN" help:"Token that gateways log in with. Default: a new one."`
	ClientToken  string        `name:"client-token" env:"LAB_CLIENT_TOKEN" help:"Token that clients log in with. Default: a new one."`
	RelayToken   string        `name:"relay-token" env:"LAB_RELAY_TOKEN" help:"Token that relays log in with. Default: a new one."`
	Resource     []string      `name:"resource" placeholder:"ADDRESS" help:"Address, prefix or domain pattern that every client may reach. Repeatable."`
	For          time.Duration `name:"for" default:"24h" help:"How long access to these resources lasts."`
	V1           bool          `name:"v1" help:"Be a portal of the older generation (1.4)."`
	Verbose      bool          `name:"verbose" short:"v" help:"Log who comes and goes to standard error."`
}

// Help implements kong.HelpProvider.
func (portalCommand) Help() string {
	return `The portal has one site to begin with. Resources and grants are made while it
runs, through its control interface:

  curl -d '{"type":"cidr","name":"office","address":"10.0.0.0/24"}' URL/lab/resources
  curl -d '{"resource_id":"…","ttl":"8h"}' URL/lab/grants         everybody
  curl -d '{"client":"ID","resource_id":"…","ttl":"8h"}' URL/lab/grants
  curl -X DELETE 'URL/lab/grants?resource_id=…'                   revoke
  curl URL/lab/state                                              who is here
  curl 'URL/lab/events?after=0&wait=10s'                          what happened`
}

// standing is what the command prints about the portal.
type standing struct {
	URL          string            `json:"url"`
	ControlURL   string            `json:"control_url"`
	GatewayToken string            `json:"gateway_token"`
	ClientToken  string            `json:"client_token"`
	RelayToken   string            `json:"relay_token"`
	Resources    []portal.Resource `json:"resources"`
}

// Run implements the command.
func (c *portalCommand) Run(s *session) (err error) {
	for _, token := range []*string{&c.GatewayToken, &c.ClientToken, &c.RelayToken} {
		if *token == "" {
			*token = rand.Text()
		}
	}
	config := portal.Config{
		Addr: c.Listen, ControlAddr: c.Control, V1Only: c.V1,
		GatewayToken: c.GatewayToken, ClientToken: c.ClientToken, RelayToken: c.RelayToken,
	}
	if c.Verbose {
		config.Logger = slog.New(slog.NewTextHandler(s.stderr, nil))
	}
	server, err := portal.New(config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	about := standing{
		URL: server.URL(), ControlURL: server.ControlURL(),
		GatewayToken: c.GatewayToken, ClientToken: c.ClientToken, RelayToken: c.RelayToken,
		Resources: []portal.Resource{},
	}
	for _, address := range c.Resource {
		added, err := server.AddResource(portal.Resource{Type: typeOf(address), Name: address, Address: address})
		if err != nil {
			return err
		}
		if err := server.Grant("", added.ID, c.For); err != nil {
			return err
		}
		about.Resources = append(about.Resources, added)
	}
	if err := s.print(about, about.write); err != nil {
		return err
	}
	<-s.ctx.Done()
	return nil
}

func (a standing) write(w io.Writer) error {
	fmt.Fprintf(w, "portal   %s\ncontrol  %s/lab/state\n\n", a.URL, a.ControlURL)
	fmt.Fprintf(w, "gateway  FIREZONE_API_URL=%s FIREZONE_TOKEN=%s\n", a.URL, a.GatewayToken)
	fmt.Fprintf(w, "client   FIREZONE_API_URL=%s FIREZONE_TOKEN=%s\n", a.URL, a.ClientToken)
	fmt.Fprintf(w, "relay    FIREZONE_API_URL=%s FIREZONE_TOKEN=%s\n\n", a.URL, a.RelayToken)
	for _, r := range a.Resources {
		fmt.Fprintf(w, "resource %s %s (%s)\n", r.ID, r.Address, r.Type)
	}
	_, err := fmt.Fprintln(w, "firezone-lab portal --help shows how to add resources. Ctrl-C ends it.")
	return err
}

// typeOf tells prefixes and addresses from domain patterns.
func typeOf(address string) portal.ResourceType {
	_, prefixErr := netip.ParsePrefix(address)
	_, addrErr := netip.ParseAddr(address)
	if prefixErr != nil && addrErr != nil {
		return portal.DNS
	}
	return portal.CIDR
}
