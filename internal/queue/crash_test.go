package queue

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"
)

const (
	// crashDirEnv makes the test binary enqueue into the data directory that it names.
	crashDirEnv = "GROUPFERRY_QUEUE_CRASH_DIR"

	crashJobs  = 40_000
	crashKills = 12
)

// crashChild is a process that wants to enqueue an import, and says a line after each batch.
func crashChild(dir string) {
	ctx := context.Background()
	q, err := Open(ctx, Config{DataDir: dir})
	if err == nil {
		fmt.Println("open")
		_, _, err = q.Begin(ctx, Import{ID: "i", Digest: "d"})
	}
	if err == nil {
		_, err = q.Enqueue(ctx, "i", jobsOf("i", crashJobs), func(n int64) { fmt.Println(n) })
	}
	if err == nil {
		err = q.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestEnqueueKilled kills importer and server together, again and again, without a warning. Each start goes on; in the
// end every job is on the stream once, in order.
func TestEnqueueKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a dozen processes")
	}
	dir := t.TempDir()
	start := func() (*exec.Cmd, *bufio.Scanner) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDirEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, bufio.NewScanner(out)
	}
	last := ""
	for kill := range crashKills {
		cmd, lines := start()
		// From before the server is up to after the second batch, and then anywhere within the next one.
		for range kill % 4 {
			if !lines.Scan() {
				t.Fatalf("kill %d: the process ended by itself", kill)
			}
			last = lines.Text()
		}
		time.Sleep(rand.N(30 * time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // to its end, as Wait wants it
			last = lines.Text()
		}
		_ = cmd.Wait() // killed
	}
	t.Logf("after %d kills the last line was %s", crashKills, last)
	cmd, lines := start()
	for lines.Scan() {
		last = lines.Text()
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprint(crashJobs); last != want {
		t.Errorf("got %s jobs in the end, want %s", last, want)
	}
	q := open(t, Config{DataDir: dir})
	checkStream(t, q, "i", crashJobs)
}

// TestImporterKilled kills an importer while the server lives on in another process, with a batch half sent or not.
func TestImporterKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	dir := t.TempDir()
	q := open(t, Config{DataDir: dir})
	for kill := range 4 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDirEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range 2 + kill {
			if !lines.Scan() {
				t.Fatalf("kill %d: the process ended by itself", kill)
			}
		}
		time.Sleep(rand.N(30 * time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	}
	got, err := q.Enqueue(t.Context(), "i", jobsOf("i", crashJobs), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.Skipped == 0 || got.Jobs == 0 || got.Jobs+got.Skipped != crashJobs {
		t.Errorf("got %+v, want some of both and %d in all", got, crashJobs)
	}
	checkStream(t, q, "i", crashJobs)
}
