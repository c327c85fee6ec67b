package broker

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gofrs/flock"
)

// Who only reads the bucket control needs no lock and changes nothing, whether a server runs or not.
func TestReadOnly(t *testing.T) {
	dir, scratch := filepath.Join(t.TempDir(), "data"), t.TempDir()
	t.Setenv("TMPDIR", scratch)
	read := func() (string, error) {
		c, err := Open(t.Context(), Config{DataDir: dir, ReadOnly: true})
		if err != nil {
			return "", err
		}
		defer c.Close()
		kv, err := c.EnsureBucket(t.Context(), "control", "")
		if err != nil {
			return "", err
		}
		e, err := kv.Get(t.Context(), "k")
		if err != nil {
			return "", err
		}
		return string(e.Value()), nil
	}
	if _, err := read(); !errors.Is(err, ErrNoData) {
		t.Errorf("without data: got %v, want ErrNoData", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without data: got a data directory, %v", err)
	}

	c, err := Open(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	kv, err := c.EnsureBucket(t.Context(), "control", "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	if got, err := read(); got != "v" || err != nil {
		t.Errorf("beside a server: got %q, %v", got, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	lock := flock.New(filepath.Join(dir, lockFile)) // as by a process that is about to start a server
	if got, err := lock.TryLock(); !got || err != nil {
		t.Fatal(got, err)
	}
	defer lock.Close()
	killed, other := filepath.Join(scratch, "groupferry-read-1"), filepath.Join(scratch, "groupferry-read-2")
	for _, d := range []string{killed, other} { // of one that was killed in it long ago, and of one that runs
		if err := os.MkdirAll(filepath.Join(d, "jetstream"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	longAgo := time.Now().Add(-time.Hour)
	if err := os.Chtimes(killed, longAgo, longAgo); err != nil {
		t.Fatal(err)
	}
	before := listing(t, dir)
	if got, err := read(); got != "v" || err != nil {
		t.Errorf("without a server: got %q, %v", got, err)
	}
	if after := listing(t, dir); after != before {
		t.Errorf("got another data directory:\n%s\nwant\n%s", after, before)
	}
	if left, err := filepath.Glob(filepath.Join(scratch, "groupferry-*")); len(left) != 1 || left[0] != other || err != nil {
		t.Errorf("left behind: %v, %v, want that of the other process alone", left, err)
	}
}

// listing has the names and times of all files below a directory.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err == nil {
			b.WriteString(fs.FormatFileInfo(i) + " " + i.ModTime().String() + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
