// A server that takes the socket of systemd's protocol when there is one, and finishes what it serves
// when it is told to end.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func listen() (net.Listener, error) {
	if os.Getenv("LISTEN_FDS") != "" {
		return net.FileListener(os.NewFile(3, "listener"))
	}
	return net.Listen("tcp", "127.0.0.1:"+os.Args[1])
}

func main() {
	listener, err := listen()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	answer := func(w http.ResponseWriter) { fmt.Fprintf(w, "pid=%d\n", os.Getpid()) }
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { answer(w) })
	http.HandleFunc("/held/", func(w http.ResponseWriter, r *http.Request) {
		os.ReadFile(filepath.Join(os.Getenv("GATES"), filepath.Base(r.URL.Path)))
		answer(w)
	})
	var server http.Server
	ended, told := make(chan struct{}), make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	go func() {
		<-told
		server.Shutdown(context.Background())
		close(ended)
	}()
	if err := server.Serve(listener); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-ended
}
