// A healthy Go service: it answers on a socket all the while, although goroutines compute and block for long, as they may.
//
// Prints `ready 0 PID`, `computed` and `slept` once these are over, and `slowest NS`: the slowest answer, by its own word.
package main

import (
	"fmt"
	"net"
	"os"
	"runtime"
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

func answer(peer net.Conn) {
	defer peer.Close()
	buffer := make([]byte, 16)
	for {
		n, err := peer.Read(buffer)
		if err != nil {
			return
		}
		peer.Write(buffer[:n])
	}
}

func main() {
	// More than one, so that one that computes keeps nobody waiting.
	runtime.GOMAXPROCS(2)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			peer, err := listener.Accept()
			if err != nil {
				return
			}
			go answer(peer)
		}
	}()
	go func() {
		time.Sleep(3 * time.Second)
		compute(time.Now().Add(800 * time.Millisecond))
		fmt.Println("computed")
		pause := syscall.Timespec{Nsec: 700_000_000}
		syscall.Nanosleep(&pause, nil)
		fmt.Println("slept")
	}()
	peer, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		panic(err)
	}
	fmt.Println("ready 0", os.Getpid())
	buffer := make([]byte, 1)
	slowest := time.Duration(0)
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); {
		began := time.Now()
		peer.Write([]byte("x"))
		peer.Read(buffer)
		if took := time.Since(began); took > slowest {
			slowest = took
		}
		time.Sleep(2 * time.Millisecond)
	}
	fmt.Println("slowest", slowest.Nanoseconds())
}
