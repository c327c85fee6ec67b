package queue

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/longtest"
)

const (
	// crashDirEnv makes the test binary a process that works in the data directory that it names, and crashModeEnv says at
	// what: see crashChild.
	crashDirEnv  = "GROUPFERRY_QUEUE_CRASH_DIR"
	crashModeEnv = "GROUPFERRY_QUEUE_CRASH_MODE"

	crashJobs  = 40_000
	crashKills = 12
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		if err := crashChild(dir, os.Getenv(crashModeEnv)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// crashChild enqueues an import and prints a line after each batch, or leads an import a whole life.
func crashChild(dir, mode string) error {
	ctx := context.Background()
	conn, err := broker.Open(ctx, broker.Config{DataDir: dir})
	if err != nil {
		return err
	}
	q, err := Open(ctx, conn)
	if err != nil {
		return err
	}
	if mode == "lifecycle" {
		err = lifecycle(ctx, q)
	} else {
		fmt.Println("open")
		if _, _, err = q.Begin(ctx, Import{ID: "i", Digest: "d"}); err == nil {
			_, err = q.Enqueue(ctx, "i", testJobs("i", crashJobs), func(n int64) { fmt.Println(n) })
		}
	}
	if err != nil {
		return err
	}
	return conn.Close()
}

// lifecycle takes an import from its beginning, or from wherever it is, to its deletion.
func lifecycle(ctx context.Context, q *Queue) error {
	const id, jobs = "i", 60
	if err := q.Sweep(ctx); err != nil {
		return err
	}
	// Beside another one, so that the streams are not empty afterwards.
	if _, _, err := q.Begin(ctx, Import{ID: "other", Digest: "d"}); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if _, _, err := q.Begin(ctx, Import{ID: id, Digest: "d"}); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if _, err := q.Enqueue(ctx, id, testJobs(id, jobs), nil); err != nil {
		return err
	}
	if err := completeWithFailures(ctx, q, id, jobs); err != nil {
		return fmt.Errorf("complete: %w", err)
	}
	if _, _, err := q.Retry(ctx, id, nil, nil); err != nil {
		return err
	}
	return cancelAndDelete(ctx, q, id)
}

func crashProcess(t *testing.T, dir string, env ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), crashDirEnv+"="+dir), env...)
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

// TestEnqueueKilled kills importer and server together, again and again, without a warning. Each start resumes; in the
// end every job is on the stream once, in order.
func TestEnqueueKilled(t *testing.T) {
	longtest.Only(t)
	dir := t.TempDir()
	last := ""
	for kill := range crashKills {
		cmd, lines := crashProcess(t, dir)
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
	cmd, lines := crashProcess(t, dir)
	for lines.Scan() {
		last = lines.Text()
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprint(crashJobs); last != want {
		t.Errorf("got %s jobs in the end, want %s", last, want)
	}
	q, err := Open(t.Context(), openConn(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	wantJobs(t, q, "i", crashJobs)
}

// TestImporterKilled kills an importer while the server runs in another process, with a batch half sent or not.
func TestImporterKilled(t *testing.T) {
	longtest.Only(t)
	dir := t.TempDir()
	q, err := Open(t.Context(), openConn(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	for kill := range 4 {
		cmd, lines := crashProcess(t, dir)
		for range 2 + kill {
			if !lines.Scan() {
				t.Fatalf("kill %d: the process ended by itself", kill)
			}
		}
		time.Sleep(rand.N(30 * time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
		}
		_ = cmd.Wait()
	}
	got, err := q.Enqueue(t.Context(), "i", testJobs("i", crashJobs), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.Skipped == 0 || got.Jobs == 0 || got.Jobs+got.Skipped != crashJobs {
		t.Errorf("got %+v, want some of both and %d in all", got, crashJobs)
	}
	wantJobs(t, q, "i", crashJobs)
}

// TestLifeKilled kills a process, with the server in it or not, at each failpoint of an import's life, and each time that
// it comes there. The next process finishes what was cut off, and in the end nothing is left.
func TestLifeKilled(t *testing.T) {
	if !broker.Failpoints {
		t.Skip("needs -tags failpoint")
	}
	var names []string
	for _, point := range []string{"begin", "start", "enqueue", "retry", "end", "end-results", "drop", "delete", "delete-record",
		"record-running", "record-complete", "record-retrying", "record-deleting"} {
		for _, when := range []string{"before", "inside", "after"} {
			names = append(names, point+"-"+when)
		}
	}
	kills := 0
	for _, name := range names {
		for n := 1; ; n++ {
			dir := t.TempDir()
			var server *broker.Conn
			if n%2 == 0 {
				server = openConn(t, dir)
			}
			cmd, lines := crashProcess(t, dir, crashModeEnv+"=life", fmt.Sprintf("GROUPFERRY_FAILPOINT=%s:%d", name, n))
			for lines.Scan() {
			}
			if err := cmd.Wait(); err == nil {
				if n == 1 && !strings.HasSuffix(name, "-inside") {
					t.Errorf("%s: it was never there", name)
				}
				break
			} else if cmd.ProcessState.Exited() {
				t.Fatalf("%s:%d: %v", name, n, err)
			}
			kills++
			if server == nil {
				server = openConn(t, dir)
			}
			q, err := Open(t.Context(), server)
			if err == nil {
				checkWhole(t, q, "i", fmt.Sprintf("%s:%d", name, n))
				err = lifecycle(t.Context(), q)
			}
			if err != nil {
				t.Fatalf("%s:%d: %v", name, n, err)
			}
			wantNothing(t, q, "i")
			server.Close()
		}
	}
	t.Logf("%d kills", kills)
}
