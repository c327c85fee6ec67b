//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly || windows)

package importer

import (
	"errors"
	"os"
)

// lockFile fails: without locks nobody can tell whose a file is, so none is taken for a leftover.
func lockFile(*os.File) error { return errors.ErrUnsupported }

func removeLocked(f *os.File) error { return os.Remove(f.Name()) }

func diskFull(error) bool { return false }
