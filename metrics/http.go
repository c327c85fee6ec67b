package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// scrapeTimeout and maxScrapes bound what scrapers can cost a worker. Prometheus itself waits 10 s by default.
const (
	scrapeTimeout = 5 * time.Second
	maxScrapes    = 4
)

// Handler serves /metrics, /livez and /readyz.
//
// /livez says 200 as long as the process can respond at all: a process that waits for NATS or for the API must not be
// restarted for it. /readyz says 200 when ready is nil or returns nil, and otherwise 503 with the text of the error,
// which therefore must hold no secret.
func (m *Metrics) Handler(ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		EnableOpenMetrics:   true,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTimeout,
	}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		respond(w, http.StatusOK, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if ready != nil {
			if err := ready(); err != nil {
				respond(w, http.StatusServiceUnavailable, err.Error())
				return
			}
		}
		respond(w, http.StatusOK, "ok")
	})
	return mux
}

func respond(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	fmt.Fprintln(w, text)
}

// shutdownTimeout is how long requests in flight may continue after ctx is done; none takes longer than a scrape.
const shutdownTimeout = scrapeTimeout + time.Second

// Serve serves h on l until ctx is done, lets requests in flight finish, and returns nil. It returns the error
// when l fails earlier. It closes l in any case.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      2 * scrapeTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()

	select {
	case err := <-served:
		return fmt.Errorf("serve metrics on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := s.Shutdown(stop); err != nil {
		s.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", l.Addr(), err)
	}
	return nil
}
