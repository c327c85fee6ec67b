//go:build unix

package importer

import (
	"bytes"
	"context"
	"encoding/csv"
	"io"
	"runtime"
	"syscall"
	"testing"

	"github.com/gocarina/gocsv"
)

// BenchmarkRead sets a whole Read beside the loop over gocsv alone that it is built around, by CPU time: wall time says
// little on a machine with other work. held-B/row is what the plan keeps in memory.
func BenchmarkRead(b *testing.B) {
	const groups, each = 2000, 100
	input, _ := shuffled(1, groups, each, 10)
	perRow := func(b *testing.B, loop func()) {
		b.ReportAllocs()
		b.SetBytes(int64(len(input)))
		from := cpu(b)
		for b.Loop() {
			loop()
		}
		b.ReportMetric(float64(cpu(b)-from)/float64(b.N)/(groups*each), "cpu-ns/row")
	}
	b.Run("gocsv alone", func(b *testing.B) {
		perRow(b, func() {
			r := csv.NewReader(bytes.NewReader(input))
			r.ReuseRecord = true
			rows, err := gocsv.NewUnmarshaller(r, &csvRow{})
			if err != nil {
				b.Fatal(err)
			}
			for err == nil {
				_, err = rows.Read()
			}
			if err != io.EOF {
				b.Fatal(err)
			}
		})
	})
	b.Run("reader", func(b *testing.B) {
		cols, _ := newColumns(nil)
		perRow(b, func() {
			if _, err := readCSV(bytes.NewReader(input), ',', cols, 0, discard{}); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("plan", func(b *testing.B) {
		var p *Plan
		before := heapBytes()
		perRow(b, func() {
			p = nil
			p = benchPlan(b, input)
		})
		b.ReportMetric(float64(heapBytes()-before)/(groups*each), "held-B/row")
		runtime.KeepAlive(p)
	})
	b.Run("jobs", func(b *testing.B) {
		p := benchPlan(b, input)
		perRow(b, func() {
			for _, err := range p.Jobs() {
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}

func benchPlan(b *testing.B, input []byte) *Plan {
	p, err := Read(context.Background(), []string{"-"}, Config{Stdin: bytes.NewReader(input)})
	if err != nil {
		b.Fatal(err)
	}
	if p.Summary.Jobs != 2000 {
		b.Fatalf("got %+v, want 2000 jobs", p.Summary)
	}
	return p
}

type discard struct{}

func (discard) row(*row)                     {}
func (discard) reject(*row, string, string)  {}
func (discard) refuse(int64, string, string) {}
func (discard) warn(position, string)        {}
func (discard) ignore(string)                {}

// cpu is the CPU time of this process so far, in nanoseconds.
func cpu(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
