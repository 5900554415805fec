// An HTTP service in Go, as healthy as they are: goroutines compute and block in system calls for as long as they like,
// while any thread of the runtime polls the network.
//
// usage: netpoll --truth FILE. Prints `ready PORT`. `/compute?ms=N` and `/nap?ms=N` keep the thread that serves them;
// nobody else waits for that, so nothing is written to the file.
package main

import (
	"bufio"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func compute(until time.Time) (sum uint64) {
	for time.Now().Before(until) {
		for i := uint64(0); i < 100000; i++ {
			sum += i ^ sum
		}
	}
	return sum
}

func serve(peer net.Conn) {
	defer peer.Close()
	reader := bufio.NewReader(peer)
	var target string
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return
		}
		if strings.HasPrefix(line, "GET ") {
			target = strings.Split(line, " ")[1]
		}
		if line != "\r\n" {
			continue
		}
		path, number, _ := strings.Cut(target, "?ms=")
		ms, _ := strconv.Atoi(number)
		lasts := time.Duration(ms) * time.Millisecond
		switch path {
		case "/compute":
			compute(time.Now().Add(lasts))
		case "/nap":
			ts := syscall.NsecToTimespec(lasts.Nanoseconds())
			syscall.Nanosleep(&ts, nil)
		}
		fmt.Fprint(peer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println("ready", listener.Addr().(*net.TCPAddr).Port)
	for {
		peer, err := listener.Accept()
		if err != nil {
			return
		}
		go serve(peer)
	}
}
