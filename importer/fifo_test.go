//go:build unix

package importer

import (
	"context"
	"os"
	"syscall"
	"testing"
)

// TestEndlessOpen leaves a named pipe alone that nobody writes to, as an input and as the file of ids.
func TestEndlessOpen(t *testing.T) {
	files(t, map[string]string{"a.csv": someRows})
	for _, name := range []string{"pipe", "ids", "pipe2", "ids2"} {
		if err := syscall.Mkfifo(name, 0o600); err != nil {
			t.Skip(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, cfg := range []Config{{}, {MapIDs: "ids"}} {
		if _, err := Read(ctx, []string{"pipe"}, cfg); err != context.Canceled {
			t.Errorf("%+v: got %v, want %v", cfg, err, context.Canceled)
		}
	}
	// They are read when somebody writes.
	go func() {
		for _, f := range []struct{ name, text string }{
			{"ids2", "old,new\nu1,v1\nx1,y1\n"}, {"pipe2", "from_account,group_name,to_account\nu1,g,x1\n"},
		} {
			w, err := os.OpenFile(f.name, os.O_WRONLY, 0)
			if err == nil {
				_, err = w.WriteString(f.text)
			}
			if err != nil || w.Close() != nil {
				t.Errorf("write: %v", err)
			}
		}
	}()
	p, err := Read(t.Context(), []string{"pipe2"}, Config{MapIDs: "ids2"})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, "jobs", jobTexts(t, p), "v1/g: 1:y1@pipe2:2")
}
