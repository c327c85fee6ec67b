package metrics

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func get(t *testing.T, h http.Handler, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

func TestHandler(t *testing.T) {
	halted := func() error { return errors.New("halted: 51013 the app's edition lacks the feature") }
	tests := []struct {
		name   string
		ready  func() error
		path   string
		status int
		body   string // part of it
	}{
		{"metrics", nil, "/metrics", 200, "groupferry_jobs_in_flight 0"},
		{"alive", nil, "/livez", 200, "ok\n"},
		{"alive though halted", halted, "/livez", 200, "ok\n"},
		{"ready, nobody asked", nil, "/readyz", 200, "ok\n"},
		{"ready", func() error { return nil }, "/readyz", 200, "ok\n"},
		{"not ready", halted, "/readyz", 503, "halted: 51013 the app's edition lacks the feature\n"},
		{"elsewhere", nil, "/debug/pprof/", 404, ""},
	}
	m := New(Config{})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := get(t, m.Handler(test.ready), test.path)
			if got.Code != test.status {
				t.Errorf("status of %s: got %d, want %d", test.path, got.Code, test.status)
			}
			if !strings.Contains(got.Body.String(), test.body) {
				t.Errorf("body of %s: got %q, want %q in it", test.path, got.Body, test.body)
			}
		})
	}
	w := httptest.NewRecorder()
	m.Handler(nil).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/metrics", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST /metrics: got %d, want %d", w.Code, http.StatusMethodNotAllowed)
	}
}

func TestOpenMetrics(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
	w := httptest.NewRecorder()
	New(testConfig()).Handler(nil).ServeHTTP(w, r)
	if got := w.Header().Get("Content-Type"); !strings.HasPrefix(got, "application/openmetrics-text") {
		t.Errorf("content type: got %q, want OpenMetrics", got)
	}
	body := w.Body.String()
	if !strings.HasSuffix(body, "# EOF\n") {
		t.Error("the body does not end in # EOF")
	}
	if strings.Contains(body, "_created") {
		t.Error("the body holds _created series, which double the cost of every counter")
	}
}

func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	// The request is still in flight when the server is told to stop, and must still get its response.
	entered, leave := make(chan struct{}), make(chan struct{})
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(entered)
			<-leave
			io.WriteString(w, "in time")
		}))
	}()
	type reply struct {
		body string
		err  error
	}
	replied := make(chan reply, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err != nil {
			replied <- reply{err: err}
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		replied <- reply{string(b), err}
	}()
	<-entered
	cancel()
	waitRefused(t, l.Addr().String())
	close(leave)
	if got := <-replied; got.err != nil || got.body != "in time" {
		t.Errorf("request in flight: got %q, %v, want a response", got.body, got.err)
	}
	if err := <-served; err != nil {
		t.Errorf("serve after a stop: got %v, want nil", err)
	}
}

func waitRefused(t *testing.T, addr string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		c.Close()
	}
	t.Error("the server still accepts connections after its context is done")
}

func TestServeFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := Serve(t.Context(), l, http.NotFoundHandler()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("serve on a closed listener: got %v, want %v", err, net.ErrClosed)
	}
}
