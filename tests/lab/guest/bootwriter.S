# Copyright: Contributors to livestorage.libvirt
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# A whole guest in one boot sector. It writes 32 KiB chunks to a ring on each of its disks in turn, and says on COM1
# "W", the sequence number as 8 hexadecimal digits and a newline when a chunk is written, "!" and a newline when a
# write failed (it then tries the same chunk again after a second).
#
#   sequence number   boot << 24 | counter; boot is kept in this sector, so numbers rise across cold restarts
#   disk              sequence % disks
#   slot in its ring  sequence / disks % slots, at sector 2048 + 64 * slot
#   every sector      u32 "LSQ1", u32 sequence, u32 its own sector number, u32 ~sequence, 124 x u32 sequence * 0x9E3779B1
#
# guest.py patches the four words at byte 492; slots 0 makes a guest that never writes.

	.code16
	.globl	_start
_start:
	cli
	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %ss
	mov	$0x7c00, %sp
	sti
	cld
	cmpl	$0, slots
	jne	boot
idle:
	hlt
	jmp	idle

boot:
	incl	boots
	mov	$0x80, %dl
	mov	$1, %al
	call	write				# this sector, as it stands in memory
	movw	$0, packet_offset
	movw	$0x1000, packet_segment
	mov	boots, %eax
	shl	$24, %eax
	mov	%eax, sequence

next:
	incl	sequence
	mov	sequence, %eax
	xor	%edx, %edx
	divl	disks
	mov	%dl, disk
	xor	%edx, %edx
	divl	slots
	shl	$6, %edx
	add	$2048, %edx
	mov	%edx, packet_sector

	mov	$0x1000, %ax
	mov	%ax, %es
	xor	%di, %di
	mov	$64, %bp
	mov	%edx, %ebx
fill:
	mov	$0x3151534c, %eax		# "LSQ1"
	stosl
	mov	sequence, %eax
	stosl
	mov	%ebx, %eax
	stosl
	mov	sequence, %eax
	not	%eax
	stosl
	imul	$0x9e3779b1, sequence, %eax
	mov	$124, %cx
	rep	stosl
	inc	%ebx
	dec	%bp
	jnz	fill

	mov	disk, %dl
	add	$0x80, %dl
	mov	$64, %al
	call	write

	mov	$'W', %al
	call	put
	mov	sequence, %ebx
	mov	$8, %cl
digit:
	rol	$4, %ebx
	mov	%bl, %al
	and	$15, %al
	cmp	$10, %al
	jb	1f
	add	$('A' - '0' - 10), %al
1:
	add	$'0', %al
	call	put
	dec	%cl
	jnz	digit
	mov	$'\n', %al
	call	put
	mov	delay, %ecx
	call	wait
	jmp	next

# Write %al sectors of the packet to drive %dl, for as long as it takes.
write:
	mov	%al, sectors
again:
	mov	sectors, %al
	mov	%al, packet_count		# SeaBIOS sets it to 0 when a write fails, and a write of 0 sectors succeeds
	mov	$0x4300, %ax
	mov	$packet, %si
	int	$0x13
	jc	failed
	ret
failed:
	mov	$'!', %al
	call	put
	mov	$'\n', %al
	call	put
	mov	$18, %ecx
	call	wait
	jmp	again

# Halt for %ecx ticks of 55 ms; INT 15h would burn the processor instead.
wait:
	jecxz	2f
	mov	0x46c, %eax
1:
	hlt
	mov	0x46c, %esi
	sub	%eax, %esi
	cmp	%ecx, %esi
	jb	1b
2:
	ret

put:
	push	%dx
	push	%ax
	mov	$0x3fd, %dx
1:
	in	%dx, %al
	test	$0x20, %al
	jz	1b
	pop	%ax
	mov	$0x3f8, %dx
	out	%al, %dx
	pop	%dx
	ret

disk:		.byte	0
sectors:	.byte	0
	.balign	4
sequence:	.long	0
packet:		.byte	16, 0
packet_count:	.byte	0, 0
packet_offset:	.word	0x7c00
packet_segment:	.word	0
packet_sector:	.long	0, 0

	.org	492
boots:		.long	0
slots:		.long	0
disks:		.long	0
delay:		.long	0
	.org	510
	.word	0xaa55
