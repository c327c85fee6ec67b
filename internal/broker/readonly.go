package broker

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
)

// scratchName are the directories of copies. Who makes one is done with it long before scratchTime, or was killed.
const (
	scratchName = "groupferry-read-*"
	scratchTime = time.Minute
)

// connectReadOnly joins the embedded server if it runs. Otherwise it starts one on a copy of the bucket control, which is
// small, and gone at Close, or at the next call if the process is killed before: the data directory stays as it is, its
// lock is not taken, and nobody else notices.
func (c *Conn) connectReadOnly() error {
	dir := c.cfg.DataDir
	e := newEmbedded(dir, c.log, func(*DiskError) {})
	opts := append(c.connectOptions(), nats.NoReconnect(), nats.SetCustomDialer(joiner{e}), nats.TokenHandler(e.currentToken),
		nats.IgnoreDiscoveredServers())
	if nc, err := nats.Connect("nats://127.0.0.1:4222", opts...); err == nil { // Dial knows where to go
		c.nc, c.embedded = nc, e
		return c.useJetStream("", "")
	}
	bucket := filepath.Join(storeDir, "$G", "streams", "KV_"+c.cfg.Namespace+"-control")
	if _, err := os.Stat(filepath.Join(dir, bucket)); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w in %s", ErrNoData, shown(dir))
	}
	removeScratch(time.Now().Add(-scratchTime))
	scratch, err := os.MkdirTemp("", scratchName) // for its owner alone
	if err != nil {
		return err
	}
	c.scratch, c.cfg.DataDir = scratch, scratch
	return os.CopyFS(filepath.Join(scratch, bucket), os.DirFS(filepath.Join(dir, bucket)))
}

// removeScratch removes the copies from before a time.
func removeScratch(before time.Time) {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), scratchName))
	for _, dir := range dirs {
		if info, err := os.Lstat(dir); err == nil && info.IsDir() && info.ModTime().Before(before) {
			_ = os.RemoveAll(dir) // another user's stays
		}
	}
}

// A joiner gives connections to the server that another process runs, and starts none.
type joiner struct{ e *embedded }

func (j joiner) Dial(_, _ string) (net.Conn, error) {
	j.e.mu.Lock()
	defer j.e.mu.Unlock()
	return j.e.join()
}
