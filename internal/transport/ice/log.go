package ice

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/pion/logging"
)

// loggers makes loggers for the ICE library. What the library says at trace and
// debug level is discarded unread, because it prints passwords there; at info
// and warning it comments on what clients do, which is debug for an operator.
type loggers struct{ log *slog.Logger }

func (l loggers) NewLogger(scope string) logging.LeveledLogger {
	return logger{l.log.With("library", scope)}
}

type logger struct{ log *slog.Logger }

func (logger) Trace(string)          {}
func (logger) Tracef(string, ...any) {}
func (logger) Debug(string)          {}
func (logger) Debugf(string, ...any) {}

func (l logger) Info(msg string)             { l.log.Debug(msg) }
func (l logger) Infof(f string, args ...any) { l.debugf(f, args...) }
func (l logger) Warn(msg string)             { l.log.Debug(msg) }
func (l logger) Warnf(f string, args ...any) { l.debugf(f, args...) }
func (l logger) Error(msg string)            { l.log.Warn(msg) }
func (l logger) Errorf(f string, args ...any) {
	l.log.Warn(fmt.Sprintf(f, args...))
}

func (l logger) debugf(f string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug(fmt.Sprintf(f, args...))
	}
}
