package chaos

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
)

// logger returns a logger to the part's file, or one that discards.
func (w *world) logger(name string) (*slog.Logger, error) {
	file, err := w.logFile(name)
	if file == nil || err != nil {
		return slog.New(slog.DiscardHandler), err
	}
	return slog.New(slog.NewTextHandler(file, &slog.HandlerOptions{Level: slog.LevelDebug})), nil
}

// logFile appends to a file of the world's folder, nil without a directory.
func (w *world) logFile(name string) (io.Writer, error) {
	if w.options.LogDir == "" {
		return nil, nil
	}
	dir := filepath.Join(w.options.LogDir, w.part)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("log directory: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	w.logs = append(w.logs, file)
	return file, nil
}
