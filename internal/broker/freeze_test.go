//go:build unix

package broker

import (
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"groupferry/internal/longtest"
)

// TestFrozenStart freezes processes for longer than a request may take, at several moments of their start. Each finds its
// own embedded server afterwards.
func TestFrozenStart(t *testing.T) {
	longtest.Only(t)
	t.Parallel()
	var children sync.WaitGroup
	for i := range 12 {
		after := time.Duration(20+12*i) * time.Millisecond // a start takes some 100 ms
		children.Go(func() {
			child := exec.CommandContext(t.Context(), os.Args[0])
			child.Env = append(os.Environ(), childEnv+"="+t.TempDir())
			out, err := child.StdoutPipe()
			if err != nil {
				t.Error(err)
				return
			}
			if err := child.Start(); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(after)
			if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Error(err)
			}
			time.Sleep(7 * time.Second)
			if err := child.Process.Signal(syscall.SIGCONT); err != nil {
				t.Error(err)
			}
			b := make([]byte, 1<<10)
			n, err := out.Read(b)
			if got := string(b[:n]); got != "open: <nil>\n" || err != nil && err != io.EOF {
				t.Errorf("frozen after %v: the child says %q, %v", after, got, err)
			}
			if err := child.Process.Kill(); err != nil {
				t.Error(err)
			}
			_ = child.Wait() // it was killed
		})
	}
	children.Wait()
}
