package main

import (
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/tun"
)

// variables returns the environment variables of all flags.
func variables() []string {
	var names []string
	t := reflect.TypeFor[flags]()
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("env"); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// parseIn parses with exactly the given environment.
func parseIn(t *testing.T, env map[string]string, args ...string) (*flags, error) {
	t.Helper()
	for _, name := range variables() {
		t.Setenv(name, "")
	}
	for name, value := range env {
		t.Setenv(name, value)
	}
	return parse(args, io.Discard, io.Discard)
}

func TestDefaults(t *testing.T) {
	f, err := parseIn(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := flags{
		APIURL: "wss://api.firezone.dev", HealthCheckAddr: "0.0.0.0:8080", LogFormat: "human", LogDirectives: "info",
		MaxPartitionTime: humanSpan(24 * time.Hour), UDPSendBuffer: 2097152, UDPRecvBuffer: 16777216,
		ReportedVersion: reportedVersion, ControlSocket: "/run/firezone/gateway.sock",
	}
	if *f != want {
		t.Errorf("got  %+v\nwant %+v", *f, want)
	}
}

// TestVariablesOfTheOriginal pins the names that deployments use.
func TestVariablesOfTheOriginal(t *testing.T) {
	f, err := parseIn(t, map[string]string{
		"FIREZONE_API_URL": "ws://portal:8081/x", "FIREZONE_TOKEN": "t", "FIREZONE_NAME": "n", "FIREZONE_ID": "i",
		"FIREZONE_NO_TELEMETRY": "true", "HEALTH_CHECK_ADDR": "[::1]:9", "FIREZONE_LOG_FORMAT": "json",
		"FIREZONE_FLOW_LOGS": "true", "FIREZONE_METRICS": "otel-collector", "OTLP_GRPC_ENDPOINT": "collector:4317",
		"FIREZONE_VALIDATE_CHECKSUMS": "true", "FIREZONE_NO_INC_BUF": "true", "FIREZONE_MAX_PARTITION_TIME": "30d",
		"RUST_LOG": "debug", "FIREZONE_UDP_SEND_BUFFER_SIZE": "1", "FIREZONE_UDP_RECV_BUFFER_SIZE": "2",
		"FIREZONE_MASQUERADE": "true", "FIREZONE_TUN_DRIVER": "water", "FIREZONE_REPORTED_VERSION": "1.4.0",
		"FIREZONE_CONTROL_SOCKET": "/x", "FIREZONE_NO_HOST_WATCH": "true", "FIREZONE_ALLOW_GATEWAY_ACCESS": "true",
		"FIREZONE_NAT64": "true", "FIREZONE_METRICS_ADDR": "[::1]:9464",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := flags{
		APIURL: "ws://portal:8081/x", Token: "t", Name: "n", ID: "i", NoTelemetry: true, HealthCheckAddr: "[::1]:9",
		LogFormat: "json", FlowLogs: true, Metrics: "otel-collector", OTLPEndpoint: "collector:4317", ValidateChecksum: true,
		NoIncBuf: true, MaxPartitionTime: humanSpan(30 * day), LogDirectives: "debug", UDPSendBuffer: 1, UDPRecvBuffer: 2,
		Masquerade: true, TUNDriver: tun.Water, ReportedVersion: "1.4.0",
		ControlSocket: "/x", NoHostWatch: true, AllowGatewayAccess: true,
		NAT64: true, MetricsAddr: "[::1]:9464",
	}
	if *f != want {
		t.Errorf("got  %+v\nwant %+v", *f, want)
	}
}

func TestPrecedence(t *testing.T) {
	for _, tc := range []struct {
		name string
		env  map[string]string
		args []string
		get  func(*flags) any
		want any
	}{
		{"a flag wins over the environment", map[string]string{"FIREZONE_NAME": "env"}, []string{"-n", "flag"}, func(f *flags) any { return f.Name }, "flag"},
		{"a long flag wins over the environment", map[string]string{"FIREZONE_ID": "env"}, []string{"--firezone-id=flag"}, func(f *flags) any { return f.ID }, "flag"},
		{"the argument wins over FIREZONE_TOKEN", map[string]string{"FIREZONE_TOKEN": "env"}, []string{"argument"}, func(f *flags) any { return f.Token }, "argument"},
		{"the argument may follow flags", nil, []string{"--no-check", "argument"}, func(f *flags) any { return f.Token }, "argument"},
		{"a given boolean wins over false", map[string]string{"FIREZONE_NO_INC_BUF": "false"}, []string{"--no-inc-buf"}, func(f *flags) any { return f.NoIncBuf }, true},
		{"a boolean can be switched off again", map[string]string{"FIREZONE_MASQUERADE": "true"}, []string{"--masquerade=false"}, func(f *flags) any { return f.Masquerade }, false},
		{"a boolean variable may be 1", map[string]string{"FIREZONE_MASQUERADE": "1"}, nil, func(f *flags) any { return f.Masquerade }, true},
		{"a boolean variable may be 0", map[string]string{"FIREZONE_MASQUERADE": "0"}, nil, func(f *flags) any { return f.Masquerade }, false},
		{"an empty identity counts as unset", map[string]string{"FIREZONE_ID": ""}, nil, func(f *flags) any { return f.ID }, ""},
		{"an empty URL counts as unset", map[string]string{"FIREZONE_API_URL": ""}, nil, func(f *flags) any { return f.APIURL }, "wss://api.firezone.dev"},
		{"an empty boolean counts as unset", map[string]string{"FIREZONE_NO_TELEMETRY": ""}, nil, func(f *flags) any { return f.NoTelemetry }, false},
		{"an empty control socket counts as unset", map[string]string{"FIREZONE_CONTROL_SOCKET": ""}, nil, func(f *flags) any { return f.ControlSocket }, "/run/firezone/gateway.sock"},
		{"a flag wins over the variable for the control socket", map[string]string{"FIREZONE_CONTROL_SOCKET": "/env"}, []string{"--control-socket=/flag"}, func(f *flags) any { return f.ControlSocket }, "/flag"},
		{"the control socket can be switched off", nil, []string{"--control-socket", "none"}, func(f *flags) any { return f.ControlSocket }, "none"},
		{"variables of old versions are ignored", map[string]string{"FIREZONE_NUM_TUN_THREADS": "x", "FIREZONE_ENABLE_MASQUERADE": "1", "FZFF_X": "y", "LOG_FORMAT": "z"}, nil, func(f *flags) any { return f.Masquerade }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, err := parseIn(t, tc.env, tc.args...)
			if err != nil {
				t.Fatal(err)
			}
			if got := tc.get(f); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestWrongUsage(t *testing.T) {
	const secret = "s3cr3t"
	for _, tc := range []struct {
		name string
		env  map[string]string
		args []string
		want string
	}{
		{"an unknown flag", nil, []string{"--masqurade"}, `did you mean "--masquerade"`},
		{"a token as a flag", nil, []string{"--token", secret}, "unknown flag --token"},
		{"a token as a flag with equals", nil, []string{"--token=" + secret}, "unknown flag --token"},
		{"two arguments", nil, []string{"x", secret}, "more than one argument"},
		{"another scheme", nil, []string{"-u", "ftp://" + secret}, "--api-url: scheme"},
		{"a token in place of the URL", nil, []string{"-u", secret}, "--api-url: scheme"},
		{"a URL without host", map[string]string{"FIREZONE_API_URL": "wss://"}, nil, "--api-url: no host"},
		{"a URL with a password", nil, []string{"--api-url=wss://u:" + secret + "@host"}, "--api-url: user name and password"},
		{"a port above 65535", nil, []string{"--api-url", "wss://" + secret + ".test:99999"}, "--api-url: port is not between 1 and 65535"},
		{"port zero", map[string]string{"FIREZONE_API_URL": "ws://h:0"}, nil, "--api-url: port is not between 1 and 65535"},
		{"a port that is no number", nil, []string{"--api-url=wss://h:" + secret}, "--api-url: not a URL"},
		{"an address without brackets", nil, []string{"--api-url=wss://2001:db8::1"}, "--api-url"},
		{"no URL", nil, []string{"--api-url=wss://" + secret + "\x7f"}, "--api-url: not a URL"},
		{"a host name for the health endpoint", map[string]string{"HEALTH_CHECK_ADDR": "localhost:8080"}, nil, "--health-check-addr"},
		{"a host name for the metrics", map[string]string{"FIREZONE_METRICS_ADDR": "localhost:9464"}, nil, "--metrics-addr"},
		{"metrics without port", nil, []string{"--metrics-addr=127.0.0.1"}, "--metrics-addr"},
		{"a health endpoint without port", nil, []string{"--health-check-addr=127.0.0.1"}, "--health-check-addr"},
		{"another log format", map[string]string{"FIREZONE_LOG_FORMAT": "xml"}, nil, `--log-format must be one of "human","json"`},
		{"a boolean that is none", map[string]string{"FIREZONE_NO_INC_BUF": "maybe"}, nil, "FIREZONE_NO_INC_BUF"},
		{"a duration without unit", map[string]string{"FIREZONE_MAX_PARTITION_TIME": "5"}, nil, "FIREZONE_MAX_PARTITION_TIME"},
		{"a broken variable under a flag", map[string]string{"FIREZONE_MAX_PARTITION_TIME": "5"}, []string{"-m", "5m"}, "FIREZONE_MAX_PARTITION_TIME"},
		{"an empty duration", nil, []string{"-m", ""}, "--max-partition-time"},
		{"a driver that does not exist", nil, []string{"--tun-driver=fast"}, "--tun-driver"},
		{"a buffer that is no number", map[string]string{"FIREZONE_UDP_SEND_BUFFER_SIZE": "2MB"}, nil, "FIREZONE_UDP_SEND_BUFFER_SIZE"},
		{"a negative buffer", map[string]string{"FIREZONE_UDP_RECV_BUFFER_SIZE": "-1"}, nil, "--udp-recv-buffer-size"},
		{"a buffer the kernel cannot count", map[string]string{"FIREZONE_UDP_SEND_BUFFER_SIZE": "2147483648"}, nil, "--udp-send-buffer-size"},
		{"an empty control socket", nil, []string{"--control-socket="}, "--control-socket"},
		{"a relative control socket", map[string]string{"FIREZONE_CONTROL_SOCKET": "gateway.sock"}, nil, "--control-socket"},
		{"an abstract control socket", nil, []string{"--control-socket=@gateway"}, "--control-socket"},
		{"a control socket that is too long", nil, []string{"--control-socket=/" + strings.Repeat("x", 107)}, "can have 107"},
		{"a command behind a flag", map[string]string{"FIREZONE_TOKEN": ""}, []string{"--control-socket=/x", "reset"}, "a command comes before its flags"},
		{"a name that is too long", nil, []string{"-n", strings.Repeat("ä", 256)}, "--firezone-name"},
		{"an identity that is too long", nil, []string{"-i", strings.Repeat("x", 256)}, "--firezone-id"},
		{"a version of two parts", nil, []string{"--reported-version=1.5"}, "--reported-version"},
		{"a version with a suffix", nil, []string{"--reported-version=1.5.3-rc1"}, "--reported-version"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			env := map[string]string{"FIREZONE_TOKEN": secret}
			for k, v := range tc.env {
				env[k] = v
			}
			_, err := parseIn(t, env, tc.args...)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not say %q", err, tc.want)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("error %q shows a secret", err)
			}
		})
	}
}

func TestNameOfTheLongestKindIsAccepted(t *testing.T) {
	if _, err := parseIn(t, nil, "-n", strings.Repeat("ä", 255), "-i", strings.Repeat("x", 255)); err != nil {
		t.Error(err)
	}
}
