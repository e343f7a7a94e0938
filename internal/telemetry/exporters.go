package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
)

// Where a receiver is that was asked for without an address (OpenTelemetry
// specification, OTLP exporter). The exporters' own defaults are encrypted.
const (
	usualGRPC = "http://localhost:4317"
	usualHTTP = "http://localhost:4318"
)

// choice is where a signal goes. The zero value is nowhere.
type choice struct {
	prometheus bool
	otlp       bool
	http       bool   // http/protobuf, not gRPC
	endpoint   string // URL for gRPC, base URL for HTTP; "" leaves it to the environment
}

// wanted returns where a signal goes according to config and the environment.
func wanted(signal string, config Config) (choice, error) {
	var c choice
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return c, nil
	}
	key := "OTEL_" + signal + "_EXPORTER"
	named := os.Getenv(key)
	if named == "" {
		c.otlp = config.Endpoint != "" || endpointVariable(signal)
		c.prometheus = signal == "METRICS" && config.Prometheus
	} else {
		for name := range strings.SplitSeq(named, ",") {
			switch name = strings.TrimSpace(name); {
			case name == "none" && named == name:
				return c, nil
			case name == "otlp":
				c.otlp = true
			case name == "prometheus" && signal == "METRICS":
				c.prometheus = config.Prometheus
			case signal == "METRICS":
				return c, fmt.Errorf("%s is %q: want otlp, prometheus, otlp,prometheus or none", key, named)
			default:
				return c, fmt.Errorf("%s is %q: want otlp or none", key, named)
			}
		}
	}
	if !c.otlp {
		return c, nil
	}
	var err error
	if c.http, err = speaksHTTP(signal, config.Endpoint != ""); err != nil {
		return choice{}, err
	}
	switch {
	case config.Endpoint != "":
		c.endpoint, err = endpointURL(config.Endpoint)
	case endpointVariable(signal):
	case c.http:
		c.endpoint = usualHTTP
	default:
		c.endpoint = usualGRPC
	}
	return c, err
}

// endpointVariable reports whether the environment has an address for a signal.
func endpointVariable(signal string) bool {
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != ""
}

// speaksHTTP reports whether a signal is sent over HTTP. An endpoint that was
// given as one of gRPC contradicts that.
func speaksHTTP(signal string, forGRPC bool) (bool, error) {
	for _, key := range []string{"OTEL_EXPORTER_OTLP_" + signal + "_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		switch protocol := os.Getenv(key); {
		case protocol == "":
		case protocol == "grpc":
			return false, nil
		case protocol == "http/protobuf" && forGRPC:
			return false, fmt.Errorf("%s is %q, and the endpoint is one of gRPC: set OTEL_EXPORTER_OTLP_ENDPOINT instead", key, protocol)
		case protocol == "http/protobuf":
			return true, nil
		default:
			return false, fmt.Errorf("%s is %q: want grpc or http/protobuf", key, protocol)
		}
	}
	return false, nil
}

// endpointURL gives endpoint a scheme. The exporters ignore what they cannot
// parse, so it is checked here.
func endpointURL(endpoint string) (string, error) {
	if !strings.Contains(endpoint, "://") {
		endpoint = "http://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		// Not the text itself, nor the parser's error, which quotes it: a URL
		// may carry credentials.
		return "", errors.New("telemetry endpoint: want host:port, or a URL with http or https")
	}
	return endpoint, nil
}

func (c choice) traceExporter(ctx context.Context) (*otlptrace.Exporter, error) {
	if c.http {
		var options []otlptracehttp.Option
		if c.endpoint != "" {
			options = append(options, otlptracehttp.WithEndpointURL(c.endpoint+"/v1/traces"))
		}
		return otlptracehttp.New(ctx, options...)
	}
	var options []otlptracegrpc.Option
	if c.endpoint != "" {
		options = append(options, otlptracegrpc.WithEndpointURL(c.endpoint))
	}
	return otlptracegrpc.New(ctx, options...)
}

func (c choice) metricExporter(ctx context.Context) (sdkmetric.Exporter, error) {
	if c.http {
		var options []otlpmetrichttp.Option
		if c.endpoint != "" {
			options = append(options, otlpmetrichttp.WithEndpointURL(c.endpoint+"/v1/metrics"))
		}
		return otlpmetrichttp.New(ctx, options...)
	}
	var options []otlpmetricgrpc.Option
	if c.endpoint != "" {
		options = append(options, otlpmetricgrpc.WithEndpointURL(c.endpoint))
	}
	return otlpmetricgrpc.New(ctx, options...)
}
