package broker

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
)

const damageMessages = 200

// writeStore fills a store and stops its server, in order or, with killed, as a kill leaves it: without the list of files,
// and without the server's own index.
func writeStore(t *testing.T, killed bool) (dir string) {
	t.Helper()
	dir = t.TempDir()
	c, err := Open(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ensure(t, c, "s")
	leaseOf(t, c)
	if _, err := leaseOf(t, c).Replace(t.Context(), []byte("one"), 0); err != nil {
		t.Fatal(err)
	}
	for i := range damageMessages {
		publish(t, c, fmt.Sprintf("s.%d", i%3), fmt.Sprintf("message %d", i))
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	// Once more, for the list to know the streams also when the next end is a kill.
	c, err = Open(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	open, err := os.ReadFile(filepath.Join(dir, listFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if killed {
		if err := os.WriteFile(filepath.Join(dir, listFile), open, 0o600); err != nil {
			t.Fatal(err)
		}
		indexes, err := filepath.Glob(filepath.Join(dir, storeDir, "*", "streams", "*", msgsDir, "index.db"))
		if err != nil || len(indexes) != 2 {
			t.Fatalf("got %v, %v; want two indexes", indexes, err)
		}
		for _, index := range indexes {
			if err := os.Remove(index); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func edit(t *testing.T, file string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		if at < 0 {
			at += len(b)
		}
		b[at] ^= 0x10
		return b
	}
}

// snapshot is all that is in a directory, but for the lock and the list.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == lockFile {
			return err
		}
		b, err := os.ReadFile(path)
		files[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestDamage(t *testing.T) {
	templates := map[bool]string{false: writeStore(t, false), true: writeStore(t, true)}
	stream := filepath.Join(storeDir, "$G", "streams", "s")
	control := filepath.Join(storeDir, "$G", "streams", "KV_groupferry-lease")
	block := filepath.Join(stream, msgsDir, "1.blk")
	remove := func(t *testing.T, path string) {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name   string
		path   string // what is damaged, and named
		damage func(t *testing.T, path string)
		closed bool // it is noticed after an orderly end only
	}{
		{"meta.inf", filepath.Join(stream, metaFile), func(t *testing.T, path string) { edit(t, path, flip(40)) }, false},
		{"meta.sum", filepath.Join(stream, metaFile), func(t *testing.T, path string) {
			edit(t, filepath.Join(filepath.Dir(path), sumFile), flip(3))
		}, false},
		{"message", block, func(t *testing.T, path string) { edit(t, path, flip(2000)) }, false},
		{"length of a message", block, func(t *testing.T, path string) { edit(t, path, flip(0)) }, false},
		{"last message", block, func(t *testing.T, path string) { edit(t, path, flip(-12)) }, false},
		{"lease", filepath.Join(control, msgsDir, "1.blk"), func(t *testing.T, path string) { edit(t, path, flip(25)) }, false},
		{"no meta.inf", filepath.Join(stream, metaFile), remove, false},
		{"no meta.sum", filepath.Join(stream, sumFile), remove, false},
		{"no stream", filepath.Join(stream, metaFile), func(t *testing.T, path string) { remove(t, filepath.Dir(path)) }, false},
		{"no file of messages", block, remove, true},
		{"no messages", block, func(t *testing.T, path string) { remove(t, filepath.Dir(path)) }, true},
		{"cut short", block, func(t *testing.T, path string) { edit(t, path, func(b []byte) []byte { return b[:len(b)-5] }) }, true},
		{"emptied", block, func(t *testing.T, path string) { edit(t, path, func(b []byte) []byte { return nil }) }, true},
	} {
		for _, killed := range []bool{false, true} {
			if killed && test.closed {
				continue
			}
			t.Run(fmt.Sprintf("%s, killed %t", test.name, killed), func(t *testing.T) {
				dir := t.TempDir()
				if err := os.CopyFS(dir, os.DirFS(templates[killed])); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(dir, test.path)
				test.damage(t, path)
				before := snapshot(t, dir)
				for range 2 { // the first attempt leaves all as it is
					c, err := Open(t.Context(), Config{DataDir: dir})
					if err == nil {
						c.Close()
					}
					damaged, ok := errors.AsType[*DamagedError](err)
					if !ok || damaged.Path != path || damaged.What == "" || !strings.Contains(err.Error(), "restore "+dir+" from a backup") {
						t.Fatalf("got %v, want damage of %s, and what to do", err, path)
					}
					if Unreachable(err) {
						t.Error("it is taken for a matter of reach")
					}
				}
				if after := snapshot(t, dir); !maps.Equal(before, after) {
					t.Error("the store was changed")
				}
			})
		}
	}
}

// TestFlippedBytes flips each byte of a file of messages in turn.
func TestFlippedBytes(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ensure(t, c, "s")
	for i := range 3 {
		_, err := c.JetStream().PublishMsg(t.Context(), &nats.Msg{
			Subject: "s.a", Data: fmt.Append(nil, "message ", i), Header: nats.Header{"K": {"v"}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, storeDir, "$G", "streams", "s", msgsDir, "1.blk"))
	if err != nil || len(b) < 3*minRecord {
		t.Fatalf("got %d bytes, %v", len(b), err)
	}
	h, err := blockHash("s-1")
	if err != nil {
		t.Fatal(err)
	}
	for _, last := range []bool{false, true} {
		if at := badRecord(b, h, last); at >= 0 {
			t.Fatalf("the message at %d is taken for damaged", at)
		}
		for i := range b {
			for bit := range 8 {
				b[i] ^= 1 << bit
				if at := badRecord(b, h, last); at < 0 || at > i {
					t.Errorf("last %t, byte %d, bit %d of %d bytes: got damage at %d", last, i, bit, len(b), at)
				}
				b[i] ^= 1 << bit
			}
		}
	}
	for n := range b { // cut short, after whole messages or in one
		if at := badRecord(b[:n], h, true); at >= 0 {
			t.Errorf("cut at %d: the message at %d is taken for damaged", n, at)
		}
	}
}

// TestTornWrite opens what a kill, or a loss of power, leaves of a message that was being written.
func TestTornWrite(t *testing.T) {
	for name, tear := range map[string]func([]byte) []byte{
		"nothing":         func(b []byte) []byte { return b },
		"length":          func(b []byte) []byte { return append(b, 0x40, 0) },
		"half a message":  func(b []byte) []byte { return append(b, slices.Clone(b[len(b)-60:len(b)-20])...) },
		"end not written": func(b []byte) []byte { return append(b, append(slices.Clone(b[:30]), make([]byte, 100)...)...) },
		"zeros":           func(b []byte) []byte { return append(b, make([]byte, 4096)...) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := writeStore(t, true)
			edit(t, filepath.Join(dir, storeDir, "$G", "streams", "s", msgsDir, "1.blk"), tear)
			c := open(t, Config{DataDir: dir})
			state, err := c.StreamState(t.Context(), "s", "")
			if err != nil || state.Msgs != damageMessages || state.LastSeq != damageMessages {
				t.Errorf("got %+v, %v; want %d messages", state, err, damageMessages)
			}
			if seq := publish(t, c, "s.0", "next"); seq != damageMessages+1 {
				t.Errorf("got sequence %d next", seq)
			}
		})
	}
}

// TestManyStarts goes through deletes, purges and replaced records between orderly ends and kills: none of it is damage.
func TestManyStarts(t *testing.T) {
	dir := t.TempDir()
	for round := range 8 {
		c, err := Open(t.Context(), Config{DataDir: dir})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		ensure(t, c, "s")
		s := leaseOf(t, c)
		for i := range 20 {
			publish(t, c, fmt.Sprintf("s.%d", i%3), strings.Repeat("x", 1000*i))
			_, revision, err := s.Read(t.Context())
			if err == nil {
				_, err = s.Replace(t.Context(), []byte("a lease"), revision)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		stream, err := c.JetStream().Stream(t.Context(), "s")
		if err != nil {
			t.Fatal(err)
		}
		switch round % 4 {
		case 1:
			err = stream.Purge(t.Context())
		case 2:
			err = stream.DeleteMsg(t.Context(), stream.CachedInfo().State.LastSeq-3)
		case 3:
			err = c.JetStream().DeleteStream(t.Context(), "s")
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if round%2 == 0 {
			if err := os.Remove(filepath.Join(dir, listFile)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestLastMsgThatCannotBeRead damages a message of a server that does not look before it starts, and says then that there
// is none.
func TestLastMsgThatCannotBeRead(t *testing.T) {
	opts := serverOptions
	opts.StoreDir = t.TempDir()
	s := startServer(t, opts)
	c := open(t, Config{URL: s.ClientURL()})
	ensure(t, c, "s")
	for i := range 3 {
		publish(t, c, fmt.Sprintf("s.%d", i), "message")
	}
	s.Shutdown()
	s.WaitForShutdown()
	edit(t, filepath.Join(opts.StoreDir, storeDir, "$G", "streams", "s", msgsDir, "1.blk"), flip(-80)) // in the middle one
	c = open(t, Config{URL: startServer(t, opts).ClientURL()})
	m, err := c.LastMsg(t.Context(), "s", "s.1")
	damaged, ok := errors.AsType[*DamagedError](err)
	if !ok || !strings.Contains(damaged.Error(), "stream s on nats://") || errors.Is(err, ErrNotFound) {
		t.Errorf("got %+v, %v; want damage of stream s", m, err)
	}
	if m, err := c.LastMsg(t.Context(), "s", "s.0"); err != nil {
		t.Errorf("its neighbour: got %+v, %v", m, err)
	}
}

// TestHealedStore takes away what a server that is killed while it makes a stream has not written yet. Without the fix
// the stream works until the server ends, and all that was in it is out of sight from then on.
func TestHealedStore(t *testing.T) {
	dir := writeStore(t, true)
	if err := os.Remove(filepath.Join(dir, listFile)); err != nil { // it was made since the start
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, storeDir, "$G", "streams", "s", sumFile)); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		c, err := Open(t.Context(), Config{DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		ensure(t, c, "s")
		state, err := c.StreamState(t.Context(), "s", "")
		if err != nil || state.Msgs != damageMessages {
			t.Errorf("round %d: got %+v, %v; want %d messages", round, state, err, damageMessages)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStreamThatTheServerLeavesOut has a description that nobody can read, with the right checksum.
func TestStreamThatTheServerLeavesOut(t *testing.T) {
	dir := writeStore(t, false)
	stream := filepath.Join(dir, storeDir, "$G", "streams", "s")
	meta := []byte(`{"name":"s","subjects":["s.>"],"storage":"on paper"}`)
	h, err := blockHash("s")
	if err != nil {
		t.Fatal(err)
	}
	h.Write(meta)
	edit(t, filepath.Join(stream, metaFile), func([]byte) []byte { return meta })
	edit(t, filepath.Join(stream, sumFile), func([]byte) []byte { return fmt.Appendf(nil, "%x", h.Sum(nil)) })
	c, err := Open(t.Context(), Config{DataDir: dir})
	if err == nil {
		c.Close()
	}
	if damaged, ok := errors.AsType[*DamagedError](err); !ok || damaged.Path != stream {
		t.Errorf("got %v, want damage of %s", err, stream)
	}
}

// TestDamageAtTakeOver is met by a guest: it logs it, and does not start the server.
func TestDamageAtTakeOver(t *testing.T) {
	dir := writeStore(t, false)
	var log lockedBuffer
	owner := open(t, Config{DataDir: dir})
	guest := open(t, Config{DataDir: dir, Log: debugLog(&log)})
	meta := filepath.Join(dir, storeDir, "$G", "streams", "s", metaFile)
	edit(t, meta, flip(40))
	if err := owner.Close(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "an error in the log", func() bool {
		return strings.Contains(log.String(), "embedded server cannot be taken over") && strings.Contains(log.String(), "meta.inf")
	})
	if guest.Embedded() {
		t.Error("it started the server")
	}
	if n := strings.Count(log.String(), "cannot be taken over"); n != 1 {
		t.Errorf("it was logged %d times", n)
	}
}
