package relay

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/pion/logging"
)

// loggers makes pion's loggers write to slog. What pion calls an error is a
// datagram it did not like, so everything is at debug level.
type loggers struct{ log *slog.Logger }

func (l loggers) NewLogger(scope string) logging.LeveledLogger {
	return logger{l.log.With("scope", scope)}
}

type logger struct{ log *slog.Logger }

func (l logger) Trace(string)          {}
func (l logger) Tracef(string, ...any) {}

func (l logger) Debug(msg string) { l.log.Debug(msg) }
func (l logger) Info(msg string)  { l.log.Debug(msg) }
func (l logger) Warn(msg string)  { l.log.Debug(msg) }
func (l logger) Error(msg string) { l.log.Debug(msg) }

func (l logger) Debugf(format string, args ...any) { l.print(format, args) }
func (l logger) Infof(format string, args ...any)  { l.print(format, args) }
func (l logger) Warnf(format string, args ...any)  { l.print(format, args) }
func (l logger) Errorf(format string, args ...any) { l.print(format, args) }

// print formats only what somebody reads: pion logs each packet.
func (l logger) print(format string, args []any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug(fmt.Sprintf(format, args...))
	}
}
