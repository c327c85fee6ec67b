package chat

import (
	"context"
	"net"
	"time"
)

// dialer returns what makes the connections of a client. They drop what they have not sent when they are closed, and
// where the system can do it also when it was not acknowledged for as long as a call may take. So a call that was given
// up, or whose process died or stands still, does not stay in a buffer of this machine, to arrive at the API when its
// permit is long back.
func dialer(timeout time.Duration) func(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			// Where neither can be had, the cooldown of the permits is what remains.
			_ = tcp.SetLinger(0)
			_ = setUserTimeout(tcp, timeout)
		}
		return &guardedConn{Conn: conn}, nil
	}
}
