package broker

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/minio/highwayhash"
	"github.com/nats-io/nats-server/v2/server"
)

// The embedded server does not stop at damaged data. A stream whose description does not match its checksum is left out,
// and made anew, empty, by whoever needs it. A missing file of messages is a note in the log. And after a kill it reads
// all files of messages, and cuts each off at the first record that it cannot read, with all that is behind it. So the
// store is looked at before the server starts, while nothing has been changed:
//
//   - After an orderly end there is a list of what there was: a stream or a file that is missing, or has another size, is
//     damage. Contents are checked up to checkBytes, the smallest streams first, which are those that hold the records.
//     For the rest, whoever reads a message finds out, and counts.
//   - After a kill, each file of messages is read, as the server does then. A record that is cut short at the very end is
//     one that was being written, and nobody got an answer for it.
//
// After that the server must have loaded each stream that there is.

const (
	// listFile names, in the data directory, what was in the store.
	listFile = "store.json"

	metaFile = "meta.inf" // describes a stream; names and formats from here on are the server's
	sumFile  = "meta.sum" // its checksum
	msgsDir  = "msgs"
	blockExt = ".blk"

	// checkBytes of messages are checked after an orderly end: some 50,000 results, in 20 to 50 ms. Control and lease have
	// far less.
	checkBytes = 16 << 20
)

// A storeList is what listFile holds.
type storeList struct {
	Version int                         `json:"v"`
	Closed  bool                        `json:"closed"`  // the server ended in order, and the files are these
	Streams map[string]map[string]int64 `json:"streams"` // directory below the store → file of messages → bytes, if Closed
}

// remedy is what helps against all damage.
func (e *embedded) remedy() string {
	return fmt.Sprintf("restore %s from a backup, or move it away and import the files again (what was imported before is found to be there)",
		shown(e.dir))
}

func (e *embedded) damaged(path, what string) error {
	return &DamagedError{Path: path, What: what, Remedy: e.remedy()}
}

// checkStore looks for damage, and leaves a list that says that the store is in use. The caller holds the lock of the
// directory, and the server does not run.
func (e *embedded) checkStore() error {
	store := filepath.Join(e.dir, storeDir)
	list := e.readList()
	if err := e.checkList(store, list); err != nil {
		return err
	}
	if err := healStore(store, list); err != nil {
		return err
	}
	streams, err := findStreams(store)
	if err != nil {
		return err
	}
	slices.SortFunc(streams, func(a, b storedStream) int { return cmp.Compare(a.bytes, b.bytes) })
	left := int64(checkBytes)
	for _, s := range streams {
		if err := e.checkMeta(s); err != nil {
			return err
		}
		if left -= s.bytes; left >= 0 || !list.Closed {
			if err := e.checkBlocks(s); err != nil {
				return err
			}
		}
	}
	return e.writeList(storeList{Streams: names(streams)}, true)
}

// readList returns an empty list when there is none, or none that can be read.
func (e *embedded) readList() storeList {
	var list storeList
	b, err := os.ReadFile(filepath.Join(e.dir, listFile))
	if err != nil || json.Unmarshal(b, &list) != nil || list.Version != 1 {
		return storeList{}
	}
	return list
}

// writeList writes the list; with sync it is on the disk when writeList returns.
func (e *embedded) writeList(list storeList, sync bool) error {
	list.Version = 1
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(e.dir, listFile), b, sync); err != nil || !sync {
		return err
	}
	return syncDir(e.dir)
}

// sealStore lists what the server left. Without a list all is read at the next start, so an error does not matter.
func (e *embedded) sealStore() {
	streams, err := findStreams(filepath.Join(e.dir, storeDir))
	if err == nil {
		err = e.writeList(storeList{Closed: true, Streams: names(streams)}, false)
	}
	if err != nil {
		e.log.Debug("store not listed", "dir", e.dir, "error", err)
	}
}

// missing is damaged for what is on the list. The list can be wrong where somebody removed a stream by other means.
func (e *embedded) missing(path, what string) error {
	remedy := e.remedy() + "; if it was changed on purpose, delete " + filepath.Join(shown(e.dir), listFile)
	return &DamagedError{Path: path, What: what, Remedy: remedy}
}

// checkList compares the store with the list.
func (e *embedded) checkList(store string, list storeList) error {
	for stream, blocks := range list.Streams {
		dir := filepath.Join(store, filepath.FromSlash(stream))
		for _, name := range []string{metaFile, sumFile} {
			if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, os.ErrNotExist) {
				return e.missing(filepath.Join(dir, name), "the file is missing")
			} else if err != nil {
				return err
			}
		}
		if !list.Closed {
			continue
		}
		for name, size := range blocks {
			file := filepath.Join(dir, msgsDir, name)
			switch info, err := os.Stat(file); {
			case errors.Is(err, os.ErrNotExist):
				return e.missing(file, "the file is missing")
			case err != nil:
				return err
			case info.Size() != size:
				return e.missing(file, fmt.Sprintf("the file has %d bytes, and had %d", info.Size(), size))
			}
		}
	}
	return nil
}

// healStore fixes what a kill -9 can leave of a stream that was just being made: its description (meta.inf) without the
// checksum of it (meta.sum). The server leaves such a one out at every start, and when it is made again over the same
// directory writes no checksum either, for the description is there. Without the description both are written anew, and
// the messages beside them are kept. A stream on the list was whole: see checkList.
func healStore(store string, list storeList) error {
	found, err := filepath.Glob(filepath.Join(store, "*", "streams", "*", metaFile))
	if err != nil {
		return err
	}
	for _, meta := range found {
		_, err := os.Stat(filepath.Join(filepath.Dir(meta), sumFile))
		if errors.Is(err, os.ErrNotExist) {
			Failpoint("heal-before")
			err = os.Remove(meta)
			Failpoint("heal-after")
		}
		if err != nil {
			return fmt.Errorf("fix the store: %w", err)
		}
	}
	return nil
}

// A storedStream is one that has a description and its checksum.
type storedStream struct {
	account, name string
	dir           string
	blocks        map[string]int64 // file of messages → bytes
	bytes         int64            // of all of them
}

func (s storedStream) key() string { return s.account + "/streams/" + s.name }

func names(streams []storedStream) map[string]map[string]int64 {
	m := make(map[string]map[string]int64, len(streams))
	for _, s := range streams {
		m[s.key()] = s.blocks
	}
	return m
}

func findStreams(store string) ([]storedStream, error) {
	sums, err := filepath.Glob(filepath.Join(store, "*", "streams", "*", sumFile))
	if err != nil {
		return nil, err
	}
	var streams []storedStream
	for _, sum := range sums {
		dir := filepath.Dir(sum)
		s := storedStream{
			account: filepath.Base(filepath.Dir(filepath.Dir(dir))), name: filepath.Base(dir),
			dir: dir, blocks: map[string]int64{},
		}
		if strings.HasPrefix(s.name, ".") { // being deleted
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, metaFile)); errors.Is(err, os.ErrNotExist) {
			continue
		}
		files, err := os.ReadDir(filepath.Join(dir, msgsDir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, f := range files {
			if filepath.Ext(f.Name()) != blockExt {
				continue
			}
			info, err := f.Info()
			if err != nil {
				return nil, err
			}
			s.blocks[f.Name()] = info.Size()
			s.bytes += info.Size()
		}
		streams = append(streams, s)
	}
	return streams, nil
}

// checkMeta compares a description with its checksum.
func (e *embedded) checkMeta(s storedStream) error {
	meta, err := os.ReadFile(filepath.Join(s.dir, metaFile))
	if err != nil {
		return err
	}
	sum, err := os.ReadFile(filepath.Join(s.dir, sumFile))
	if err != nil {
		return err
	}
	h, err := blockHash(s.name)
	if err != nil {
		return err
	}
	h.Write(meta)
	if hex.EncodeToString(h.Sum(nil)) != string(sum) {
		return e.damaged(filepath.Join(s.dir, metaFile), "the file does not match its checksum in "+sumFile)
	}
	return nil
}

// blockHash is the server's hash for what has that name.
func blockHash(name string) (hash.Hash, error) {
	key := sha256.Sum256([]byte(name))
	return highwayhash.New64(key[:])
}

// checkBlocks reads all messages of a stream.
func (e *embedded) checkBlocks(s storedStream) error {
	var config struct {
		Compression string `json:"compression"`
	}
	b, err := os.ReadFile(filepath.Join(s.dir, metaFile))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &config); err != nil {
		return e.damaged(filepath.Join(s.dir, metaFile), err.Error())
	}
	if config.Compression != "" && config.Compression != "none" { // none of ours is
		return nil
	}
	last := 0
	index := map[string]int{}
	for name := range s.blocks {
		n := 0
		if _, err := fmt.Sscanf(name, "%d"+blockExt, &n); err != nil {
			continue
		}
		index[name] = n
		last = max(last, n)
	}
	var buf bytes.Buffer
	for name, n := range index {
		file := filepath.Join(s.dir, msgsDir, name)
		if err := readInto(&buf, file, s.blocks[name]); err != nil {
			return err
		}
		h, err := blockHash(fmt.Sprintf("%s-%d", s.name, n))
		if err != nil {
			return err
		}
		if at := badRecord(buf.Bytes(), h, n == last); at >= 0 {
			return e.damaged(file, fmt.Sprintf("the message at byte %d cannot be read", at))
		}
	}
	return nil
}

func readInto(buf *bytes.Buffer, file string, size int64) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	buf.Reset()
	buf.Grow(int(size) + bytes.MinRead)
	_, err = buf.ReadFrom(f)
	return err
}

const (
	// A record is its length (4 bytes, with a bit for headers), sequence (8), time (8), length of the subject (2), and then
	// subject, length of the headers (4) and headers if it has some, message, and a hash (8) of all but the lengths.
	recordHeader = 22
	recordHash   = 8
	minRecord    = recordHeader + recordHash
	maxRecord    = 32 << 20
	headerBit    = 1 << 31
)

// badRecord returns where the first record is that cannot be read, or -1. At the end of the last file of a stream a record
// that is cut short, or whose end was not written yet, is none.
func badRecord(b []byte, h hash.Hash, last bool) int {
	for at := 0; at < len(b); {
		if n, ok := recordLength(b[at:]); ok && whole(b[at:], n, h) {
			at += n
			continue
		}
		if last && torn(b[at:], h) {
			return -1
		}
		return at
	}
	return -1
}

// recordLength tells how many bytes the first record in b says it has, and whether they are there.
func recordLength(b []byte) (n int, ok bool) {
	if len(b) < minRecord {
		return 0, false
	}
	n = int(binary.LittleEndian.Uint32(b) &^ headerBit)
	return n, minRecord <= n && n <= min(len(b), maxRecord)
}

// whole tells whether the first n bytes of b, at least minRecord, are a record with its hash. The lengths are not in the
// hash; those of a record with headers are checked by what headers start and end with.
func whole(b []byte, n int, h hash.Hash) bool {
	end := n - recordHash
	body := recordHeader + int(binary.LittleEndian.Uint16(b[20:]))
	if body > end {
		return false
	}
	h.Reset()
	h.Write(b[4:20])
	h.Write(b[recordHeader:body])
	if binary.LittleEndian.Uint32(b)&headerBit != 0 {
		if body += 4; body > end {
			return false
		}
		size := int(binary.LittleEndian.Uint32(b[body-4:]))
		if size > end-body || !bytes.HasPrefix(b[body:body+size], []byte("NATS/1.0")) || !bytes.HasSuffix(b[body:body+size], []byte("\r\n\r\n")) {
			return false
		}
	}
	h.Write(b[body:end])
	var sum [recordHash]byte
	return bytes.Equal(h.Sum(sum[:0]), b[end:n])
}

// torn tells whether b, which starts with a record that cannot be read, is what a write leaves that was cut short: nothing
// whole follows, and the record goes beyond the end, or ends in zeros, as a file does that got longer before it was filled.
func torn(b []byte, h hash.Hash) bool {
	if len(b) < minRecord {
		return true
	}
	if whole(b, len(b), h) { // but for its length
		return false
	}
	for at := 1; at+minRecord <= len(b); at++ {
		if n, ok := recordLength(b[at:]); ok && whole(b[at:], n, h) {
			return false
		}
	}
	n := int(binary.LittleEndian.Uint32(b) &^ headerBit)
	return n > len(b) || bytes.Equal(b[len(b)-recordHash:], make([]byte, recordHash))
}

// checkLoaded looks whether the server has loaded each stream that there is.
func (e *embedded) checkLoaded(s *server.Server) error {
	loaded := map[string]bool{}
	jsz, err := s.Jsz(&server.JSzOptions{Accounts: true, Streams: true})
	if err != nil {
		return fmt.Errorf("ask the server for its streams: %w", err)
	}
	for _, account := range jsz.AccountDetails {
		for _, stream := range account.Streams {
			loaded[account.Id+"/streams/"+stream.Name] = true
		}
	}
	streams, err := findStreams(filepath.Join(e.dir, storeDir))
	if err != nil {
		return err
	}
	for _, stream := range streams {
		if !loaded[stream.key()] {
			return e.damaged(stream.dir, "the server cannot read it; its log says why (--log-level debug)")
		}
	}
	return nil
}
