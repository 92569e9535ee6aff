# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# filewriter SLOTS DELAY FILE...: what bootwriter.S does, to a file on each file system of a Linux guest in turn. A file is laid
# out as a disk of that one is, and a chunk is acknowledged on the standard output when fsync(2) says that it is written.

	.set	READ, 17			# pread64
	.set	WRITE, 18			# pwrite64
	.set	CHUNK, 32768
	.set	TICK, 54925439			# nanoseconds

	.text
	.globl	_start
_start:
	mov	(%rsp), %r12
	lea	8(%rsp), %r13			# the arguments
	mov	8(%r13), %rsi
	call	number
	mov	%eax, slots
	mov	16(%r13), %rsi
	call	number
	mov	%rax, delay
	add	$24, %r13
	sub	$3, %r12			# how many files
	xor	%ebx, %ebx
1:
	mov	(%r13,%rbx,8), %rdi
	mov	$2, %esi			# O_RDWR
	mov	$2, %eax			# open
	syscall
	test	%eax, %eax
	js	end
	mov	%eax, files(,%rbx,4)
	inc	%rbx
	cmp	%r12, %rbx
	jb	1b

	mov	files, %edi
	mov	$sector, %rsi
	mov	$512, %edx
	xor	%r10d, %r10d
	mov	$READ, %eax
	syscall
	incl	boots
	mov	files, %edi
	mov	$sector, %rsi
	mov	$512, %edx
	xor	%r10d, %r10d
	call	write
	mov	boots, %r14d
	shl	$24, %r14d

next:
	inc	%r14d				# the sequence number
	mov	%r14d, %eax
	xor	%edx, %edx
	div	%r12d
	mov	%edx, %r15d			# the file
	xor	%edx, %edx
	divl	slots
	shl	$6, %edx
	add	$2048, %edx
	mov	%edx, %ebp			# the sector

	mov	$chunk, %rdi
	mov	$64, %r8d
	mov	%ebp, %ebx
1:
	mov	$0x3151534c, %eax		# "LSQ1"
	stosl
	mov	%r14d, %eax
	stosl
	mov	%ebx, %eax
	stosl
	mov	%r14d, %eax
	not	%eax
	stosl
	imul	$0x9e3779b1, %r14d, %eax
	mov	$124, %ecx
	rep	stosl
	inc	%ebx
	dec	%r8d
	jnz	1b

	mov	files(,%r15,4), %edi
	mov	$chunk, %rsi
	mov	$CHUNK, %edx
	mov	%rbp, %r10
	shl	$9, %r10
	call	write

	mov	%r14d, %ebx
	mov	$line + 1, %rdi
	mov	$8, %ecx
1:
	rol	$4, %ebx
	mov	%bl, %al
	and	$15, %al
	cmp	$10, %al
	jb	2f
	add	$('A' - '0' - 10), %al
2:
	add	$'0', %al
	stosb
	dec	%ecx
	jnz	1b
	mov	$line, %rsi
	mov	$10, %edx
	call	say
	mov	delay, %rax
	call	wait
	jmp	next

end:
	mov	$1, %edi
	mov	$60, %eax			# exit
	syscall

# Write %edx bytes from %rsi at %r10 of the file %edi and sync it, for as long as it takes.
write:
	push	%rdi
	push	%rsi
	push	%rdx
	push	%r10
	mov	$WRITE, %eax
	syscall
	cmp	%rdx, %rax
	jne	1f
	mov	$74, %eax			# fsync
	syscall
	test	%eax, %eax
	jz	2f
1:
	mov	$failed, %rsi
	mov	$2, %edx
	call	say
	mov	$18, %eax
	call	wait
	pop	%r10
	pop	%rdx
	pop	%rsi
	pop	%rdi
	jmp	write
2:
	add	$32, %rsp
	ret

say:
	mov	$1, %edi
	mov	$1, %eax			# write
	syscall
	ret

# Sleep for %rax ticks of 55 ms.
wait:
	imul	$TICK, %rax, %rax
	xor	%edx, %edx
	mov	$1000000000, %ecx
	div	%rcx
	mov	%rax, pause
	mov	%rdx, pause + 8
	mov	$pause, %edi
	xor	%esi, %esi
	mov	$35, %eax			# nanosleep
	syscall
	ret

# Return the decimal number at %rsi.
number:
	xor	%eax, %eax
1:
	movzbl	(%rsi), %ecx
	test	%ecx, %ecx
	jz	2f
	imul	$10, %eax, %eax
	lea	-'0'(%rax,%rcx), %eax
	inc	%rsi
	jmp	1b
2:
	ret

	.data
line:		.ascii	"W00000000\n"
failed:		.ascii	"!\n"

	.bss
	.balign	4096
chunk:		.skip	CHUNK
sector:		.skip	492
boots:		.skip	20
pause:		.skip	16
delay:		.skip	8
slots:		.skip	4
files:		.skip	16
