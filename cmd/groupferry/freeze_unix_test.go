//go:build unix

package main

import (
	"os/exec"
	"syscall"
	"testing"
)

// freeze stops a process where it is, and thaw lets it continue.
func freeze(t testing.TB, cmd *exec.Cmd) { signalTo(t, cmd, syscall.SIGSTOP) }
func thaw(t testing.TB, cmd *exec.Cmd)   { signalTo(t, cmd, syscall.SIGCONT) }

func signalTo(t testing.TB, cmd *exec.Cmd, signal syscall.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}
